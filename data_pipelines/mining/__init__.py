"""What `vlp mine` makes of features, and the batches that the loader makes of that."""
