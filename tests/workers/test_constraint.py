"""The roles of a constraint: costs by a function or a model, and demonstrations that come with the prompts."""

import dataclasses
import json

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
from runs import config_of
from workers.answers import answered

from jaxflow.batch_algebra import derive
from jaxflow.data.batches import PromptBatches
from jaxflow.data.tasks import addition
from jaxflow.engine.state import save_weights
from jaxflow.models.transformer import ScalarModel, describe
from jaxflow.types import UserError
from jaxflow.workers.cast import role_class
from jaxflow.workers.constraint import Cost, CostModel, Pretraining
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed_methods
from jaxflow.workers.reward import Reward
from jaxflow.workers.reward_model import RewardModel

TASK = addition()
ROWS = TASK.validation_rows(0)[:4]
PROMPTS, ROLLOUT = answered(TASK.tokenizer, ROWS, ["1", "12", "123", "4"])
PLACE = Place(tiny.ONE_DEVICE)
JUDGES = """
def reward(solution_str, **row):
    return {"score": 1.0, "long": float(len(solution_str)), "ones": solution_str.count("1")}

def cost(solution_str, **row):
    if solution_str == "4":
        raise KeyError("four")
    return solution_str.count("1") - 0.5
"""


def setting(tmp_path, **changes):
    judges = tmp_path / "judges.py"
    judges.write_text(JUDGES)
    own = {"reward.function": f"{judges}:reward", "cost.function": f"{judges}:cost"}
    own |= {"reward.processes": 1, "cost.processes": 1, "cost.fallback_score": 2.0}
    config = config_of(**{**own, **{key.replace("__", "."): value for key, value in changes.items()}})
    return config, derive(config, TASK.tokenizer.vocabulary_size)


def test_costs_are_judged_by_keys_of_their_own(tmp_path):
    given = setting(tmp_path)
    costs, scores = (judge(*given, PLACE).score(ROLLOUT, PROMPTS) for judge in (Cost, Reward))
    assert costs.scores.tolist() == [0.5, 0.5, 0.5, 2.0] and costs.failed.tolist() == [False] * 3 + [True]
    assert scores.scores.tolist() == [1.0] * 4 and not scores.failed.any()
    assert exposed_methods(Cost)["score"].stage == "cost" != exposed_methods(Reward)["score"].stage
    with pytest.raises(UserError, match=r"^cost: .*cost\.max_failed_fraction .*'four'"):
        Cost(*setting(tmp_path, cost__max_failed_fraction=0.1), PLACE).score(ROLLOUT, PROMPTS)


def test_a_cost_model_s_cost_is_its_number_where_a_reward_model_s_score_is_a_probability(tmp_path):
    config, derived = setting(tmp_path, reward__kind="model", cost__kind="model")
    assert role_class(config, "cost") is CostModel and role_class(config, "reward") is RewardModel
    model = describe(derived.cost_model, ScalarModel)
    drawn = jax.device_get(model.create(jax.random.key(0)))
    drawn["head"] = {"weight": np.random.default_rng(0).normal(size=model.config.width).astype(np.float32)}
    save_weights(tmp_path / "weights", model, jax.device_put(drawn))
    told = []
    for kind in (CostModel, RewardModel):
        judge = kind(config, derived, PLACE)
        judge.load(str(tmp_path / "weights"))
        told.append(judge.score(ROLLOUT, PROMPTS).scores)
    np.testing.assert_allclose(1 / (1 + np.exp(-told[0])), told[1], rtol=1e-5)
    assert told[0].min() < 0 < told[0].max()
    # Its function still says which rows failed, and an empty response costs nothing.
    mask = ROLLOUT.response_mask.copy()
    mask[1] = False
    judge = CostModel(config, derived, PLACE)
    judge.load(str(tmp_path / "weights"))
    assert judge.score(dataclasses.replace(ROLLOUT, response_mask=mask), PROMPTS).scores[1] == 0


def test_components_are_the_numbers_beside_the_score_in_the_order_asked_for(tmp_path):
    asked = {"algorithm__gdpo__components": ["ones=1", "long=0.5"]}
    told = Reward(*setting(tmp_path, **asked), PLACE).score(ROLLOUT, PROMPTS)
    np.testing.assert_array_equal(told.components, [[1, 1], [1, 2], [1, 3], [0, 1]])
    assert Reward(*setting(tmp_path), PLACE).score(ROLLOUT, PROMPTS).components is None
    with pytest.raises(UserError, match=r"asks for short, and the reward function returned long, ones"):
        Reward(*setting(tmp_path, algorithm__gdpo__components=["short=1"]), PLACE).score(ROLLOUT, PROMPTS)


def test_demonstrations_follow_step_and_place_of_the_prompts_and_nothing_else(tmp_path):
    config, derived = setting(tmp_path)
    role = Pretraining(config, derived, PLACE)
    batches = PromptBatches(TASK.train_rows(0)[:40], 8, 2, True, 0, 8)
    prompts = batches.at(3)
    whole = role.batch(prompts)
    assert len(whole.lengths) == 16 and whole.response_mask.any(axis=1).all()
    half = tiny.prompt_rows(prompts, np.arange(5, 11))
    tiny.assert_same_bits(role.batch(half), tiny.rows_of(whole, np.arange(5, 11)))
    assert not np.array_equal(role.batch(batches.at(4)).tokens, whole.tokens)
    # Each is a prompt of the task with its solution and the end behind it.
    tokens = whole.tokens[0]
    prompt = TASK.tokenizer.decode(tokens[: int(np.argmax(whole.response_mask[0]))].tolist())
    solution = TASK.tokenizer.decode(tokens[whole.response_mask[0]].tolist())
    (row,) = {row.prompt: row for row in TASK.train_rows(0) if row.prompt == prompt}.values()
    assert solution == TASK.solution(row)


def test_demonstrations_of_files_take_the_place_of_the_task_s_however_few(tmp_path):
    rows = [{"prompt": f"{n}+1=", "response": str(n + 1)} for n in range(3)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "some.parquet")
    told = []
    for file in ("some.jsonl", "some.parquet"):
        config, derived = setting(tmp_path, data__pretraining_files=[str(tmp_path / file)])
        told.append(Pretraining(config, derived, PLACE).batch(PromptBatches(ROWS, 4, 4, True, 0, 8).at(1)))
    tiny.assert_same_bits(*told)
    read = [
        tuple(TASK.tokenizer.decode(tokens[part].tolist()) for part in (~mask & (tokens > 0), mask))
        for tokens, mask in zip(told[0].tokens, told[0].response_mask, strict=True)
    ]
    assert len(read) == 16 and set(read) == {(row["prompt"], row["response"]) for row in rows}
    (tmp_path / "bad.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps({"prompt": "1+1="}) + "\n")
    config, derived = setting(tmp_path, data__pretraining_files=[str(tmp_path / "bad.jsonl")])
    with pytest.raises(UserError, match=r"bad\.jsonl:2: no 'completion' among prompt"):
        Pretraining(config, derived, PLACE)
