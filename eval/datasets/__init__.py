"""Kinds of datasets: one file, one kind."""
