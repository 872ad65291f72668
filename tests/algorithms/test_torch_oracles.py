"""The RL mathematics against a direct PyTorch implementation in float64: values, and gradients by autograd.

The implementations here are written as RLHF code in PyTorch usually is (masks as numbers, `clamp`, `flip` and
`cumsum`, loops over groups), not as ours; ours runs in float64 as well.
"""

import jax
import numpy as np
import pytest
import tiny

from jaxflow import types
from jaxflow.algorithms import group_advantages
from jaxflow.algorithms.advantages import gae
from jaxflow.algorithms.aggregate import AGGREGATIONS, aggregate
from jaxflow.algorithms.kl import KL_LOSS_ESTIMATORS, kl_estimate, shape_rewards
from jaxflow.algorithms.losses import ValueLoss
from jaxflow.algorithms.masked import whiten
from jaxflow.algorithms.objectives import clipped_objective

torch = pytest.importorskip("torch")

LENGTH_CONSTANT = 11.0
GROUPS = np.array([0, 1, 0, 1, 1, 0, 2, 1], np.int32)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def draws(draw, mask):
    """Random [B, T] float64 arrays, 0 off the mask."""
    return lambda scale=1.0, shift=0.0: np.where(mask, draw(*mask.shape, scale=scale) + shift, 0.0).astype(
        np.float64
    )


def tensor(x, grad=False):
    return torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=grad)


def torch_aggregate(losses, mask, mode):
    rows = mask.sum(dim=1) > 0
    sums = (losses * mask).sum(dim=1)
    if mode == "token-mean":
        return sums.sum() / mask.sum()
    if mode == "token-sum":
        return sums.sum()
    if mode == "seq-mean-token-mean":
        return (sums[rows] / mask.sum(dim=1)[rows]).mean()
    return sums[rows].mean() / (LENGTH_CONSTANT if mode == "seq-mean-token-sum-norm" else 1.0)


def torch_ppo(log_probs, old, advantages, low, high, dual):
    ratio = torch.exp((log_probs - old).clamp(-20, 20))
    first, second = -advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high)
    losses = torch.maximum(first, second)
    if dual == 0:
        return losses
    return torch.where(advantages < 0, torch.minimum(losses, -advantages * dual), losses)


def torch_value(values, old, returns, clip):
    plain = (values - returns) ** 2
    if clip == 0:
        return plain / 2
    return torch.maximum(plain, (old + (values - old).clamp(-clip, clip) - returns) ** 2) / 2


def torch_kl(log_probs, reference, estimator):
    difference = reference - log_probs
    if estimator.endswith("+"):
        square, value = difference**2 / 2, torch_kl(log_probs, reference, estimator[:-1])
        return square - square.detach() + value.detach()
    if estimator == "k3":
        bounded = difference.clamp(-20, 20)
        return (bounded.exp() - bounded - 1).clamp(max=10)
    return {"k1": -difference, "k2": difference**2 / 2, "abs": difference.abs()}[estimator]


def torch_gae(rewards, values, mask, discount, gae_lambda):
    running = following = torch.zeros(len(rewards), dtype=torch.float64)
    columns = []
    for t in reversed(range(rewards.shape[1])):
        on = mask[:, t]
        now = rewards[:, t] + discount * following - values[:, t] + discount * gae_lambda * running
        following = on * values[:, t] + (1 - on) * following
        running = on * now + (1 - on) * running
        columns.append(on * now)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, (advantages + values) * mask


def torch_whiten(x, mask):
    count = mask.sum()
    mean = (x * mask).sum() / count
    variance = (((x - mean) ** 2) * mask).sum() / (count - 1)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def torch_grpo(scores, groups, present, normalize):
    advantages = torch.zeros(len(scores), dtype=torch.float64)
    for group in set(groups.tolist()):
        members = [i for i in range(len(scores)) if groups[i] == group and present[i]]
        if len(members) > 1:
            one = scores[members]
            advantages[members] = (one - one.mean()) / ((one.std() + 1e-6) if normalize else 1.0)
    return advantages


def same(ours, theirs, tolerance=1e-12):
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize(("clip", "dual"), [((0.2, 0.2), 0.0), ((0.2, 0.28), 3.0)])
def test_ppo_and_dual_clip_under_every_aggregation(mode, clip, dual, draws, mask):
    old, advantages = draws(0.5, -2), draws()
    log_probs = old + draws(0.8)
    counts = tiny.counts_of(mask)

    def loss(x):
        return aggregate(
            clipped_objective(x, old, advantages, *clip, dual)[0], mask, mode, counts, LENGTH_CONSTANT
        )

    value, gradient = jax.value_and_grad(loss)(log_probs)
    x = tensor(log_probs, grad=True)
    losses = torch_ppo(x, tensor(old), tensor(advantages), *clip, dual)
    theirs = torch_aggregate(losses, tensor(mask), mode)
    theirs.backward()
    same(value, theirs)
    same(gradient, x.grad)


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_clipped_value_loss(mode, clip, draws, mask):
    old, returns = draws(), draws()
    values = old + draws(0.8)
    zeros = np.zeros(mask.shape)
    batch = types.Experience(
        tokens=np.zeros(mask.shape, np.int32),
        lengths=np.full(len(mask), mask.shape[1], np.int32),
        response_mask=mask,
        actor_log_probs=zeros,
        reference_log_probs=zeros,
        values=old,
        advantages=zeros,
        returns=returns,
        policy_updates=np.zeros(len(mask), np.int32),
    )
    loss = ValueLoss(clip, mode, LENGTH_CONSTANT)
    (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(values, batch, tiny.counts_of(mask))
    x = tensor(values, grad=True)
    theirs = torch_aggregate(torch_value(x, tensor(old), tensor(returns), clip), tensor(mask), mode)
    theirs.backward()
    same(value, theirs)
    same(gradient, x.grad)


@pytest.mark.parametrize("estimator", [name for name in KL_LOSS_ESTIMATORS if name != "full"])
def test_kl_estimators_in_value_and_gradient(estimator, draws, mask):
    reference_log_probs = draws(1.0, -2)
    log_probs = reference_log_probs + draws(2.0)
    value, pull = jax.vjp(lambda x: kl_estimate(x, reference_log_probs, estimator), log_probs)
    x = tensor(log_probs, grad=True)
    theirs = torch_kl(x, tensor(reference_log_probs), estimator)
    theirs.sum().backward()
    same(value, theirs)
    same(pull(np.ones(mask.shape))[0], x.grad)


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.0)])
def test_gae_and_whitening(discount, gae_lambda, draws, mask):
    rewards, values = draws(), draws()
    advantages, returns = gae(rewards, values, mask, discount, gae_lambda)
    theirs = torch_gae(tensor(rewards), tensor(values), tensor(mask), discount, gae_lambda)
    same(advantages, theirs[0])
    same(returns, theirs[1])
    same(whiten(advantages, mask), torch_whiten(theirs[0], tensor(mask)))


@pytest.mark.parametrize("normalize", [True, False])
def test_grpo_from_shaped_rewards_to_the_gradient_of_its_loss(normalize, draw, draws, mask):
    scores, old = draw(len(mask)).astype(np.float64), draws(0.5, -2)
    reference_log_probs, log_probs, counts = old + draws(0.3), old + draws(0.5), tiny.counts_of(mask)
    kl = kl_estimate(old, reference_log_probs, "k1")
    totals = shape_rewards(scores, kl, mask, 0.05).sum(axis=1)
    of_rows = group_advantages.grpo(totals, GROUPS, mask.any(axis=1), normalize)
    advantages = group_advantages.per_token(of_rows, mask)

    def loss(x):
        objective = clipped_objective(x, old, advantages, 0.2, 0.2, 0.0)[0]
        pull = kl_estimate(x, reference_log_probs, "k3")
        return aggregate(objective + 0.04 * pull, mask, "seq-mean-token-mean", counts, 1.0)

    value, gradient = jax.value_and_grad(loss)(log_probs)

    on, x = tensor(mask), tensor(log_probs, grad=True)
    shaped = tensor(scores) * (on.sum(dim=1) > 0) - 0.05 * (tensor(old - reference_log_probs) * on).sum(dim=1)
    theirs = torch_grpo(shaped, GROUPS, mask.any(axis=1), normalize)
    same(of_rows, theirs)
    losses = torch_ppo(x, tensor(old), theirs[:, None] * on, 0.2, 0.2, 0.0)
    losses = losses + 0.04 * torch_kl(x, tensor(reference_log_probs), "k3")
    total = torch_aggregate(losses, on, "seq-mean-token-mean")
    total.backward()
    same(value, total)
    same(gradient, x.grad)
