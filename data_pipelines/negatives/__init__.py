"""Hard-negative captions: one file, one way to make them."""
