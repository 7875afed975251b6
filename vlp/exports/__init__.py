"""A model in the forms that other programs load, one file each."""
