"""Training a stacked model as one that was written layer by layer."""
