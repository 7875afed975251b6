"""The floor that every part stands on: types, the encoder, the index and the command line."""
