"""A run begins from a checkpoint of transformers and ends in one that transformers loads."""

import json

import numpy as np
import pytest
import torch
import transformers
from models.checkpoints import loaded, logits_of, same_tensors, tensors_of
from runs import config_of, run_here
from test_main import words_tokenizer

from jaxflow.config import to_json
from jaxflow.convert.__main__ import main

ROWS = np.random.default_rng(0).integers(0, 10, (2, 9))


@pytest.fixture
def given(tmp_path):
    """A checkpoint with its tokenizer beside it, of the micro run's shape but for a larger vocabulary."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        head_dim=16,
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=77,
        tie_word_embeddings=True,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path / "given")
    words_tokenizer(tmp_path / "given")
    lines = [{"prompt": f"one plus {word} equals", "ground_truth": word} for word in ("two", "six") * 8]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "reward.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return float(len(solution_str.split()))\n"
    )
    return tmp_path / "given"


@pytest.mark.slow
def test_a_run_from_a_checkpoint_ends_in_checkpoints(given, tmp_path):
    run = tmp_path / "run"
    changes = {
        "run.total_steps": 1,
        "run.evaluate_before": False,
        "run.evaluate_after": False,
        "data.train_files": (str(tmp_path / "train.jsonl"),),
        "data.tokenizer": str(given),
        "reward.function": f"{tmp_path / 'reward.py'}:compute_score",
        "actor.weights": str(given),
        "actor.optimizer.learning_rate": 1e-2,
        "warm_start.steps": 0,
    }
    code, said = run_here(run, **changes)
    (run / "config.json").write_text(json.dumps(to_json(config_of(**changes))))  # as jaxflow.main does
    assert code == 0
    # Policy, reference and critic, each with its largest shard as all that is on the host of it.
    assert "".join(said.split()).count(f"of{given}in") == 3
    model = json.loads(
        (run / "checkpoints" / "step_00000001" / "actor" / "weights" / "decoder.json").read_text()
    )
    assert model["decoder"]["query_key_norm"] and model["decoder"]["vocabulary_size"] == 50
    for role, kind in (
        ("actor", transformers.AutoModelForCausalLM),
        ("critic", transformers.AutoModelForSequenceClassification),
    ):
        out = tmp_path / role
        assert main(["export", str(run), str(out), "--role", role, "--dtype", "float32"]) == 0
        assert np.isfinite(logits_of(loaded(out, kind), ROWS[:1])).all()
        # What only the first checkpoint said goes on to the last.
        assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 77
        assert transformers.AutoTokenizer.from_pretrained(out)("one plus two")["input_ids"] == [2, 8, 3]
    assert same_shapes(given, tmp_path / "actor") and not same_tensors(given, tmp_path / "actor")


def same_shapes(one, other):
    shapes = [{name: tensor.shape for name, tensor in tensors_of(d).items()} for d in (one, other)]
    return shapes[0] == shapes[1]
