"""The numbers derived from a decoder's shape."""

import dataclasses

import pytest
import tiny

from jaxflow.models.decoder_config import DecoderConfig


@pytest.mark.parametrize(
    ("vocabulary", "padded"), [(1, 64), (64, 64), (65, 128), (32000, 32000), (151643, 151680)]
)
def test_vocabulary_is_padded_to_the_next_multiple_of_64(vocabulary, padded):
    assert DecoderConfig(vocabulary_size=vocabulary).padded_vocabulary_size == padded


def test_parameter_count_of_llama_2_7b_is_its_published_one():
    llama = DecoderConfig(
        vocabulary_size=32000, width=4096, layers=32, heads=32, kv_heads=32, head_width=128, mlp_width=11008
    )
    assert llama.parameter_count == 6_738_415_616


def test_a_tied_table_is_counted_once():
    tied = dataclasses.replace(tiny.CONFIG, tied_embeddings=True)
    assert tiny.CONFIG.parameter_count - tied.parameter_count == 64 * 32


def test_a_backbone_is_the_same_whatever_its_head_and_its_arithmetic():
    other = dataclasses.replace(
        tiny.CONFIG, tied_embeddings=True, logit_softcap=30.0, compute_dtype="bfloat16", remat=False
    )
    assert tiny.CONFIG.same_backbone(other) and other.same_backbone(tiny.CONFIG)


@pytest.mark.parametrize("key", ["width", "layers", "kv_heads", "mlp_width", "vocabulary_size", "rope_theta"])
def test_a_backbone_of_another_shape_is_another(key):
    other = dataclasses.replace(tiny.CONFIG, **{key: type(tiny.CONFIG.width)(7)})
    assert not tiny.CONFIG.same_backbone(other)
