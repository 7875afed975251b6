"""Nearest neighbours over features: build, change, load, search; k-means. The one door to faiss."""

from vlp.index.build import build_index as build_index
from vlp.index.exact import BLOCK as BLOCK
from vlp.index.exact import Matrix as Matrix
from vlp.index.exact import assign as assign
from vlp.index.exact import hamming_pairs as hamming_pairs
from vlp.index.exact import kmeans as kmeans
from vlp.index.exact import neighbours as neighbours
from vlp.index.folder import Index as Index
from vlp.index.folder import load_index as load_index
