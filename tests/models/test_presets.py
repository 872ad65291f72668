"""A preset is the model that bears its name: its parameters are the published total."""

import warnings

import pytest
from models.published import CONFIGS

from jaxflow.models.config_json import as_stored, read_config, write_config
from jaxflow.models.families import TOKENS
from jaxflow.models.presets import PRESETS, preset
from jaxflow.models.weight_names import parameter_count
from jaxflow.types import UserError

# From the models' cards and their checkpoints' indices; text models alone.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-34b": 33_743_970_304,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_248_023_552,
    "mistral-7b-v0.1": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
}


def test_presets_have_the_published_numbers_of_parameters():
    assert {name: parameter_count(decoder, TOKENS) for name, decoder in PRESETS.items()} == PUBLISHED


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_file_is_the_preset_of_its_name(name):
    described = read_config(CONFIGS[name], name)
    assert (described.decoder, described.head) == (PRESETS[name], TOKENS)


def test_presets_survive_the_way_through_a_config_file():
    for name, decoder in PRESETS.items():
        back = read_config(write_config(decoder, TOKENS, "bfloat16", 4096), name)
        assert (back.decoder, back.head) == (as_stored(decoder), TOKENS), name


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_transformers_builds_a_preset_with_as_many_parameters(name):
    import torch
    import transformers

    tree = write_config(PRESETS[name], TOKENS, "bfloat16", 4096)
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        config = transformers.AutoConfig.for_model(**tree)
        model = getattr(transformers, tree["architectures"][0])(config)
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name]


def test_an_unknown_preset_is_told_the_nearest_ones():
    with pytest.raises(UserError, match=r"'Qwen2\.5-8B'.*qwen2\.5-"):
        preset("Qwen2.5-8B")
