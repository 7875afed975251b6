"""Similarities of a batch, tile by tile: what the losses are made of."""
