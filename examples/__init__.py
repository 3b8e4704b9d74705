"""Models built on `liftax.Stack`."""
