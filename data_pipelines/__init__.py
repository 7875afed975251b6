"""Shards in, shards or batches out."""
