"""Benchmarks of several datasets: one JSON file, one benchmark."""
