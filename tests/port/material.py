"""The files that a foreign config names, made up: rows, a tokenizer, a reward function, weights of zeros."""

import dataclasses
import json
import pathlib
import runpy

import numpy as np
import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxflow.checks import check
from jaxflow.config import Config, from_config_dict
from jaxflow.models.config_json import write_config
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.families import SCALAR, TOKENS
from jaxflow.models.tensor_files import NewTensor, write_tensors
from jaxflow.models.weight_names import weights_of
from jaxflow.port import inputs
from jaxflow.port.report import config_file
from jaxflow.port.translate import Translation, translate

VOCABULARY = 128
SHAPE = DecoderConfig(
    vocabulary_size=VOCABULARY, width=64, layers=2, heads=8, kv_heads=8, head_width=8, mlp_width=64
)


@dataclasses.dataclass(frozen=True)
class Material:
    train: str
    validation: str
    model: str  # with its tokenizer
    judge: str  # a model that ends in one number
    reward: str


def rows(path: pathlib.Path, count: int) -> str:
    """Write rows as verl has them."""
    row = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": "1 + 1 ?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"split": "train", "index": 0},
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row] * count), path)
    return str(path)


def weights(directory: pathlib.Path, head: str) -> str:
    """Write a checkpoint of zeros with a tokenizer beside it."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(write_config(SHAPE, head, "float32", VOCABULARY)))
    tensors = [
        NewTensor(name, "F32", weight.tensor_shape)
        for weight in weights_of(SHAPE, head)
        for _, name in weight.tensors()
    ]
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    write_tensors(directory / "model.safetensors", tensors, lambda name: np.zeros(shapes[name], np.float32))
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w2").save_pretrained(directory)
    return str(directory)


def make(folder: pathlib.Path, training_rows: int) -> Material:
    """Write everything."""
    reward = folder / "reward.py"
    reward.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return 1.0\n"
    )
    return Material(
        train=rows(folder / "train.parquet", training_rows),
        validation=rows(folder / "test.parquet", 4),
        model=weights(folder / "model", TOKENS),
        judge=weights(folder / "judge", SCALAR),
        reward=str(reward),
    )


def verl(*overrides: str, rows: int | None = 1000) -> Translation:
    """Translate keys of verl's."""
    words = " ".join(f"'{override}'" for override in overrides)
    request = inputs.of_verl([], f"python3 -m verl.trainer.main_ppo {words}", rows, {})
    return translate(request.dialect, request.values, request.removed, request.rows)


def trl(trainer: str, *flags: str, rows: int | None = 1000) -> Translation:
    """Translate flags of TRL's."""
    request = inputs.of_trl([trainer, *flags], None, rows, {})
    return translate(request.dialect, request.values, request.removed, request.rows)


def config_of(translation: Translation, folder: pathlib.Path) -> Config:
    """Write the config file, and read it as a run does."""
    file = folder / "ported.py"
    file.write_text(config_file(translation, "a test"), encoding="utf-8")
    return from_config_dict(runpy.run_path(str(file))["get_config"]())


def accepted(translation: Translation, folder: pathlib.Path) -> Config:
    """Return the config of a translation that the checks of a run accept, files, weights and devices included."""
    config = config_of(translation, folder)
    check(config, VOCABULARY, None)
    return config


def told(translation: Translation) -> dict[str, tuple[str, str]]:
    """Return key -> status and text."""
    return {line.key: (line.status, "; ".join(line.texts)) for line in translation.lines}


def assigned(translation: Translation) -> dict[str, object]:
    """Return what a config file says."""
    return {one.key: one.value for one in translation.assignments}
