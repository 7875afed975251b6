"""Filters: one file, one filter."""
