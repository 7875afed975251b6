"""The floor that every part stands on: types, the encoder, the index and the command line."""

import os

# OpenMP's threads spin at every barrier; where another program uses a core too, that made a
# training step 6 times as slow (measured on 2 cores). Read once, when torch loads, so set here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
