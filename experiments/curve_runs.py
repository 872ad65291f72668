"""The training runs whose curves are drawn: which there are, how one is started, and what is kept of it.

A run is a config of this repository with the keys below changed, started as a user starts it. What it told is kept in
experiments/learning_curves/NAME-SEED.jsonl, under the settings that it ran with. A run that starts from another's
weights runs it first. Knows no table and no picture.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping

from jaxflow.tracking.metrics import GLOBAL_STEP, read_metrics

HERE = pathlib.Path(__file__).resolve().parent
STORE = HERE / "learning_curves"
SEEDS: Mapping[str, tuple[int, ...]] = {
    "reversal": (0, 1),
    "wishes": (0, 1),
    "stages": (0,),
    "even_tokens": (0, 1),
}
"""The seeds that the runs of a group are run with."""


Value = bool | int | float | str
Rows = list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run: a config with some keys changed, of some group of runs."""

    group: str  # one of SEEDS; what is compared
    config: str  # configs/….py
    settings: Mapping[str, Value]  # dotted key -> value
    weights: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # role -> run whose last ones it starts from

    def described(self) -> dict[str, object]:
        """Return all that decides what the run tells, but its seed, in JSON's terms."""
        return {"config": self.config, "settings": dict(self.settings), "weights": dict(self.weights)}


# One device in this process: placement decides speed, not results, and speed is not measured here.
_ONE_DEVICE: Mapping[str, Value] = {
    "cluster.launcher": "inprocess",
    "cluster.pools.main.devices_per_host": 1,
    "cluster.pools.main.mesh.data": 1,
    "cluster.pools.main.mesh.tensor": 1,
    "tracking.tensorboard": False,
}
_REVERSAL: Mapping[str, Value] = {
    **_ONE_DEVICE,
    "warm_start.steps": 0,
    "run.total_steps": 120,
    "run.evaluate_every_steps": 5,
    "actor.minibatch_sequences": 128,
    "critic.minibatch_sequences": 128,
}
# 512 responses a step, to 512, 128 or 64 prompts.
_ALONE = {"data.prompts_per_step": 512, "rollout.samples_per_prompt": 1}
_FOURS = {"data.prompts_per_step": 128, "rollout.samples_per_prompt": 4}
_EIGHTS = {"data.prompts_per_step": 64, "rollout.samples_per_prompt": 8}
_KL_IN_REWARD = {"algorithm.kl.reward_coefficient": 0.001, "algorithm.kl.loss_coefficient": 0.0}
_NO_KL = {"algorithm.kl.reward_coefficient": 0.0, "algorithm.kl.loss_coefficient": 0.0}
_START = {"actor": "start"}
_RL = {**_ONE_DEVICE, "run.evaluate_every_steps": 5}


def _reversal(config: str, *settings: Mapping[str, Value]) -> Run:
    return Run(
        "reversal",
        config,
        {key: value for part in (_REVERSAL, *settings) for key, value in part.items()},
        _START,
    )


RUNS: Mapping[str, Run] = {
    "start": Run("reversal", "sft_tiny", {**_ONE_DEVICE, "run.total_steps": 60}),
    "ppo": _reversal("ppo_tiny", _FOURS),
    "remax": _reversal("remax_tiny", _ALONE),
    "grpo": _reversal("grpo_tiny", _EIGHTS),
    "rloo": _reversal(
        "grpo_tiny",
        _EIGHTS,
        _KL_IN_REWARD,
        {"algorithm.estimator": "rloo", "algorithm.loss_aggregation": "seq-mean-token-sum"},
    ),
    "reinforce_plus_plus": _reversal(
        "grpo_tiny", _ALONE, _KL_IN_REWARD, {"algorithm.estimator": "reinforce_plus_plus"}
    ),
    "dapo": _reversal(
        "grpo_tiny",
        _EIGHTS,
        _NO_KL,
        {
            "algorithm.clip_ratio_high": 0.28,
            "algorithm.dynamic_sampling.max_refills": 3,
            # The longest right answer has 7 tokens: what is longer costs, up to 1 at 11.
            "rollout.max_response_tokens": 11,
            "reward.manager": "dapo",
            "reward.overlong_buffer_tokens": 4,
        },
    ),
    "gspo": _reversal(
        "grpo_tiny",
        _EIGHTS,
        {
            "algorithm.objective": "gspo",
            "algorithm.loss_aggregation": "seq-mean-token-mean",
            # The paper's widths are for answers of hundreds of tokens; the mean of seven varies more.
            "algorithm.gspo.clip_ratio_low": 0.02,
            "algorithm.gspo.clip_ratio_high": 0.03,
        },
    ),
    "wishes_sft": Run(
        "wishes",
        "sft_tiny",
        {
            **_ONE_DEVICE,
            "data.task": "wishes",
            "data.max_prompt_tokens": 8,
            "rollout.max_response_tokens": 9,
            "reward.scorer": "wishes",
            "rollout.validation_temperature": 1.0,
        },
    ),
    "reward_model": Run("wishes", "reward_model_tiny", _ONE_DEVICE, {"actor": "wishes_sft"}),
    "cost_model": Run("wishes", "cost_model_tiny", _ONE_DEVICE, {"actor": "wishes_sft"}),
    "ppo_learned_reward": Run(
        "wishes", "ppo_learned_reward", _RL, {"actor": "wishes_sft", "reward": "reward_model"}
    ),
    "safe_rlhf": Run(
        "wishes",
        "safe_rlhf_tiny",
        _RL,
        {"actor": "wishes_sft", "reward": "reward_model", "cost": "cost_model"},
    ),
    "sft": Run("stages", "sft_tiny", _ONE_DEVICE),
    "dpo": Run("stages", "dpo_tiny", _ONE_DEVICE),
    "even_tokens": Run("even_tokens", "even_tokens", _ONE_DEVICE),
}

REVERSAL = tuple(name for name, run in RUNS.items() if run.weights == _START)

# What is kept of a run's metrics; the clock is left out, for these runs share the machine.
_KEPT = (
    *(f"val-core/{what}/" for what in ("all", "sft", "reward_model", "cost_model", "dpo")),
    "val-aux/all/",
    "critic/score/mean",
    "reward/",
    "cost/",
    "constraint/",
    "actor/reward_kl_penalty",
    "actor/entropy",
    "response_length/mean",
    "perf/total_num_tokens",
    "training/refills",
)


def overrides(run: Run, seed: int, workdir: pathlib.Path) -> list[str]:
    """Return the command line of a run: its config, its keys, and where the weights lie that it starts from."""
    keys = {**run.settings, "run.seed": seed}
    for role, name in run.weights.items():
        steps = sorted((folder(workdir, name, seed) / "checkpoints").glob("step_*"))
        keys[f"{role}.weights"] = str(steps[-1] / role / "weights")
    return [
        f"--config={HERE.parent / 'configs' / run.config}.py",
        *(f"--config.{k}={v}" for k, v in keys.items()),
    ]


def folder(workdir: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Return the workdir of a run."""
    return workdir / f"{name}-{seed}"


def train(name: str, seed: int, workdir: pathlib.Path) -> None:
    """Run what a run starts from, then the run itself, and keep what it told.

    Raises:
      SystemExit: the run failed; its folder says why.
    """
    run = RUNS[name]
    for parent in dict.fromkeys(run.weights.values()):
        weights = list((folder(workdir, parent, seed) / "checkpoints").glob("step_*"))
        if not weights or kept(parent, seed) is None:
            train(parent, seed, workdir)
    place = folder(workdir, name, seed)
    shutil.rmtree(place, ignore_errors=True)  # what was begun under other settings is not gone on with
    command = [sys.executable, "-m", "jaxflow.main", f"--workdir={place}", *overrides(run, seed, workdir)]
    print(" ".join(command), flush=True)
    if subprocess.run(command, cwd=HERE.parent, check=False).returncode != 0:
        raise SystemExit(f"{name}, seed {seed}: the run failed; see {place}")
    keep(name, seed, read_metrics(place / "metrics.jsonl"))


def keep(name: str, seed: int, rows: Rows) -> None:
    """Write a run's rows, five digits of each figure, under what it was run with."""
    STORE.mkdir(exist_ok=True)
    lines = [json.dumps(RUNS[name].described())]
    for row in rows:
        kept = {key: float(f"{row[key]:.5g}") for key in row if key.startswith(_KEPT)}
        lines.append(json.dumps({"step": int(row[GLOBAL_STEP]), **kept}))
    (STORE / f"{name}-{seed}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def everything() -> list[tuple[str, int]]:
    """List the runs that tables and pictures are made of, with their seeds."""
    return [(name, seed) for name, run in RUNS.items() for seed in SEEDS[run.group]]


def kept(name: str, seed: int) -> Rows | None:
    """Return what a run told, None where it was not run with these settings."""
    file = STORE / f"{name}-{seed}.jsonl"
    if not file.is_file():
        return None
    first, *rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return rows if first == RUNS[name].described() else None


def rows_of(name: str, seed: int) -> Rows:
    """Return what a run told.

    Raises:
      LookupError: it was not run with these settings.
    """
    rows = kept(name, seed)
    if rows is None:
        raise LookupError(
            f"{name}, seed {seed}, was not run with its settings: learning_curves.py --only {name}"
        )
    return rows
