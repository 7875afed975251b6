"""Captions are encoded once each, with others of their length, and come out in their order."""

import pytest
import torch
from encoded_support import sample, written

from eval.features import Encode
from vlp.encode import encode_captions, encode_texts

CAPTIONS = ["a red circle", "a", "a red circle and a long list of other blue squares", "a", ""]


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_features_are_in_order_whatever_the_batch(encoder, batch_size):
    wanted = torch.cat([encode_captions(encoder, [caption]).features for caption in CAPTIONS])
    found = encode_texts(encoder, CAPTIONS, batch_size=batch_size)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert encode_texts(encoder, []).shape == (0, encoder.dim)


def test_one_door_encodes_a_caption_once(encoder):
    seen: list[int] = []
    handle = encoder.text.register_forward_hook(lambda *found: seen.append(len(found[2])))
    try:
        encode = Encode(encoder)
        first = encode.texts(CAPTIONS)
        again = encode.texts([*CAPTIONS, "new"])
    finally:
        handle.remove()
    assert seen == [len(set(CAPTIONS)), 1]
    assert torch.equal(again[:-1], first)
    assert torch.equal(first, encode_texts(encoder, CAPTIONS))


def test_captions_that_a_set_has_are_not_encoded_again_and_their_lines_are_others(
    encoder, tmp_path
):
    texts = ["a red circle", "a dog\nin the sea", "a dog"]
    dataset = written(tmp_path / "shards", [sample(i, text) for i, text in enumerate(texts)])
    encode, seen = Encode(encoder), []
    encode.dataset(dataset)
    handle = encoder.text.register_forward_hook(lambda *found: seen.append(len(found[2])))
    found = encode.texts([*texts, "in the sea"])
    handle.remove()
    assert seen == [1]
    torch.testing.assert_close(
        found, encode_texts(encoder, [*texts, "in the sea"]), atol=1e-6, rtol=0
    )


def test_a_batch_is_as_long_as_the_longest_of_its_captions(encoder):
    widths: list[int] = []
    handle = encoder.text.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    try:
        encode_texts(encoder, ["a b c d e f", "a", "a b c d e", "a b"], batch_size=2)
    finally:
        handle.remove()
    assert widths == [4, 8]  # with a start and an end
