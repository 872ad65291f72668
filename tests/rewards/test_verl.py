"""What verl's users bring: their Parquet rows and their reward file, as they are."""

import numpy as np
import pyarrow
import pyarrow.parquet

from jaxflow.data.prompts import load_rows
from jaxflow.data.tokenizer import CharacterTokenizer
from jaxflow.rewards.function import read_function
from jaxflow.rewards.sandbox import Sandbox
from jaxflow.rewards.sandbox_process import Limits
from jaxflow.rewards.scoring import score_rows

# Written as in verl's examples: by name, with defaults, a mapping as the result.
REWARD = """
import re

def _numbers(text):
    return [float(number) for number in re.findall(r"-?[0-9]+", text)]

def compute_score(data_source, solution_str, ground_truth, extra_info=None, method="strict", format_score=0.0):
    found = _numbers(solution_str)
    if not found:
        return {"score": 0.0, "acc": 0.0, "format": 0.0}
    right = found[-1] in ground_truth["target"][extra_info["index"]]
    return {"score": 1.0 if right else format_score, "acc": float(right), "format": 1.0, "pred": str(found[-1])}
"""


def test_rows_and_reward_file_of_verl_run_unmodified(tmp_path):
    truth = pyarrow.struct([("target", pyarrow.list_(pyarrow.list_(pyarrow.float64())))])
    table = pyarrow.table(
        {
            "data_source": ["me/sums"] * 3,
            "prompt": [[{"role": "user", "content": f"{i}+1="}] for i in range(3)],
            "ability": ["math"] * 3,
            "reward_model": pyarrow.array(
                [
                    {"style": "rule", "ground_truth": {"target": [np.array([9.0]), np.array([i + 1.0])]}}
                    for i in range(3)
                ],
                pyarrow.struct([("style", pyarrow.string()), ("ground_truth", truth)]),
            ),
            "extra_info": [{"split": "train", "index": 1, "tags": None}] * 3,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    (tmp_path / "reward.py").write_text(REWARD)
    rows = load_rows(
        [str(tmp_path / "train.parquet")], CharacterTokenizer("0123456789+="), "prompt", "", 8, "error"
    ).rows
    function = read_function(f"{tmp_path}/reward.py:compute_score", '{"format_score": 0.25}', batch=False)
    judge = Sandbox(function, Limits(2, 20.0, 512))
    scored = score_rows(judge, ["so 1", "3 or 9", "none"], rows, fallback_score=-1.0)
    judge.close()
    assert scored.scores.scores.tolist() == [1.0, 0.25, 0.0] and not scored.scores.failed.any()
    assert scored.scores.accuracy.tolist() == [1.0, 0.0, 0.0]
    assert [numbers["format"] for numbers in scored.numbers] == [1.0, 1.0, 0.0]
