"""Every registered formula obeys the response mask, holes in its middle included: what stands off it changes nothing.

A tool's output between two runs of tokens that the policy chose is off the mask. The list of formulas is the registry's
own: a new name is tested without a line here.
"""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from jaxflow.algorithms.advantages import ESTIMATORS
from jaxflow.algorithms.aggregate import AGGREGATIONS
from jaxflow.algorithms.importance import BOUNDS, LEVELS
from jaxflow.algorithms.kl import KL_LOSS_ESTIMATORS, KL_REWARD_ESTIMATORS
from jaxflow.algorithms.losses import PretrainingLoss, SupervisedLoss, ValueLoss
from jaxflow.algorithms.objectives import OBJECTIVES
from jaxflow.algorithms.selection import REWEIGHTINGS
from jaxflow.algorithms.statistics import experience_statistics
from jaxflow.config import AlgorithmConfig, Config
from jaxflow.types import TokenLogProbs
from jaxflow.workers.rule import experience_estimator, policy_loss

GROUPS = np.array([0, 1, 0, 1, 1, 0, 0, 1], np.int32)
# What may stand off the mask: a tool's text is scored like any other, and padding may hold anything.
ELSEWHERE = {"other numbers": 3.7, "huge ones": 3e38, "none": np.nan}


def rule(**changes):
    """The schema's config with keys of the algorithm changed."""
    groups = {"kl": {}, "off_policy": {}, "reweighting": {}, "gdpo": {}}
    own = {}
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            groups[group][name] = value
        else:
            own[key] = value
    plain = AlgorithmConfig()
    nested = {name: dataclasses.replace(vars(plain)[name], **given) for name, given in groups.items()}
    return dataclasses.replace(Config(), algorithm=dataclasses.replace(plain, **nested, **own))


def elsewhere(tree, mask, value):
    """Put a value wherever the mask is false into every number per token, whatever its name."""

    def replaced(leaf):
        if leaf.shape != mask.shape or leaf.dtype != np.float32:
            return leaf
        return np.where(mask, leaf, np.float32(value))

    return jax.tree.map(replaced, tree)


def assert_same(told, expected):
    for (path, left), right in zip(jax.tree.leaves_with_path(told), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=jax.tree_util.keystr(path))


@pytest.fixture
def told(rollout, scores, draw, mask):
    """All that an estimator is told of a step."""

    def field():
        return np.where(mask, draw(*mask.shape, scale=0.5) - 1, 0).astype(np.float32)

    count = len(mask)
    judged = dataclasses.replace(scores, components=draw(count, 2))
    grouped = dataclasses.replace(rollout, groups=GROUPS)
    return grouped, judged, field(), field(), field(), draw(count), np.float32(0.2), np.abs(field())


RULES = {
    **{f"estimator {name}": {"estimator": name, "gdpo__components": ("a=1", "b=2")} for name in ESTIMATORS},
    **{f"kl {name}": {"estimator": "gae", "kl__reward_estimator": name} for name in KL_REWARD_ESTIMATORS},
    **{
        f"off-policy {level} {bounds}": {
            "estimator": "grpo",
            "off_policy__level": level,
            "off_policy__bounds": bounds,
            "off_policy__rejection": level,
        }
        for level in LEVELS
        for bounds in BOUNDS
    },
    **{f"reweighting {name}": {"estimator": "gae", "reweighting__method": name} for name in REWEIGHTINGS},
    **{f"of objective {name}": {"estimator": "grpo", "objective": name} for name in ("clip_cov", "kl_cov")},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.startswith(("estimator", "kl")) else pytest.mark.slow)
        for name in RULES
    ],
)
def test_experience_and_its_figures_read_response_tokens_alone(name, told, mask):
    config = rule(**RULES[name])
    estimator, estimate = experience_estimator(config), config.algorithm.kl.reward_estimator

    @jax.jit
    def learnt_and_told(*given):
        experience = estimator(*given)
        if not name.startswith("kl"):  # of what the others read the figures are the same
            return experience, {}
        return experience, experience_statistics(*given[:2], experience, 0.2, estimate, 4, with_critic=True)

    expected = learnt_and_told(*told)
    advantages = np.asarray(expected[0].advantages)
    assert advantages[mask].any() and not advantages[~mask].any()
    for value in ELSEWHERE.values():
        assert_same(learnt_and_told(*elsewhere(told, mask, value)), expected)


@pytest.mark.parametrize("name", [name for name in RULES if name.startswith("estimator")])
def test_rows_over_eight_devices_have_the_experience_of_one(name, told):
    """Groups, whitening and choices of tokens are of the whole step, wherever its rows lie."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    estimator, (*of_rows, coefficient, measured) = jax.jit(experience_estimator(rule(**RULES[name]))), told
    spread = estimator(*jax.device_put(of_rows, rows), coefficient, jax.device_put(measured, rows))
    assert len(spread.advantages.sharding.device_set) == 8
    for apart, whole in zip(jax.tree.leaves(spread), jax.tree.leaves(estimator(*told)), strict=True):
        np.testing.assert_allclose(apart, whole, rtol=1e-4, atol=1e-5)


LOSSES = {
    **{f"objective {name}": policy_loss(rule(objective=name)) for name in OBJECTIVES},
    **{f"aggregation {name}": policy_loss(rule(loss_aggregation=name)) for name in AGGREGATIONS},
    **{
        f"kl {name}": policy_loss(rule(kl__loss_coefficient=0.1, kl__loss_estimator=name))
        for name in KL_LOSS_ESTIMATORS
    },
    "entropy": policy_loss(rule(entropy_coefficient=0.1)),
    "drifted sequences": policy_loss(rule(off_policy__negative_sequence_bound=0.01)),
    "value": ValueLoss(0.5, "token-mean", 8.0),
    "value unclipped": ValueLoss(0.0, "seq-mean-token-mean", 8.0),
    "supervised": SupervisedLoss(),
    "pretraining": PretrainingLoss(2.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_slopes_read_response_tokens_alone(name, experience, draw, mask):
    loss = LOSSES[name]
    batch = elsewhere(experience, mask, 0.0)
    batch = dataclasses.replace(
        batch, weights=np.where(mask, 0.5, 0).astype(np.float32), penalised=mask & (draw(*mask.shape) > 0)
    )
    said = np.where(mask, draw(*mask.shape, scale=0.3) - 2, 0).astype(np.float32)
    if not name.startswith("value"):
        said = TokenLogProbs(said, np.abs(said), np.abs(said))
    slope_of = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, parts), slope = slope_of(said, batch, tiny.counts_of(mask))
    assert any(np.asarray(leaf)[mask].any() for leaf in jax.tree.leaves(slope))
    for leaf in jax.tree.leaves(slope):
        assert not np.asarray(leaf)[~mask].any()
    for other in ELSEWHERE.values():
        given = elsewhere(said, mask, other), elsewhere(batch, mask, other), tiny.counts_of(mask)
        assert_same(slope_of(*given), ((value, parts), slope))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_slopes_add_up_over_micro_batches(name, experience, draw, mask):
    """However rows are cut, and so over however many devices: counts are of the whole."""
    loss, counts = LOSSES[name], tiny.counts_of(mask)
    said = np.where(mask, draw(*mask.shape, scale=0.3) - 2, 0).astype(np.float32)
    if not name.startswith("value"):
        said = TokenLogProbs(said, np.abs(said), np.abs(said))
    slope_of = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, parts), slope = slope_of(said, experience, counts)
    # As many in each, so that one program serves them all; the row without a response among them.
    rows = [np.array([3, 0, 6, 4]), np.array([7, 1, 2, 5])]
    pieces = [slope_of(tiny.rows_of(said, some), tiny.rows_of(experience, some), counts) for some in rows]
    np.testing.assert_allclose(sum(piece[0][0] for piece in pieces), value, rtol=1e-5, atol=1e-6)
    for part in parts:
        total = sum(piece[0][1][part] for piece in pieces)
        np.testing.assert_allclose(total, parts[part], rtol=1e-5, atol=1e-6, err_msg=part)
    for some, (_, piece) in zip(rows, pieces, strict=True):
        for alone, whole in zip(jax.tree.leaves(piece), jax.tree.leaves(slope), strict=True):
            np.testing.assert_allclose(alone, np.asarray(whole)[some], rtol=1e-5, atol=1e-7)
