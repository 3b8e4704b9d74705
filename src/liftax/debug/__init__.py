"""Inside of a running model: which layer, which operation, and what its numbers are like."""
