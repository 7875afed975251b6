"""Shapes are checked while tests run, and pictures and shards to test with are drawn here."""

import os
import sys
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))  # typechecker, tests_support

from jaxtyping import install_import_hook

install_import_hook(["vlp", "data_pipelines", "eval", "training"], "typechecker.checked")

import pytest
import torch
from tests_support import pairs

from data_pipelines.shards import write_shards
from vlp.checkpoint import save_encoder
from vlp.encoder import create_encoder, read_config

torch.set_num_threads(1)  # two workers of pytest share two cores


@pytest.fixture
def shards(tmp_path):
    """Return a folder of 3 shards with 64 samples."""
    write_shards(pairs(64), tmp_path / "shards", samples_per_shard=25)
    return tmp_path / "shards"


@pytest.fixture(scope="session")
def encoder():
    """Return a tiny encoder with random weights, ready to encode."""
    torch.manual_seed(0)
    return create_encoder(read_config("tiny")).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def model(encoder, tmp_path_factory):
    """Return the checkpoint folder of the tiny encoder."""
    folder = tmp_path_factory.mktemp("model")
    save_encoder(encoder, folder)
    return folder
