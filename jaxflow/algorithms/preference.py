"""Losses of preferences: a scalar model that ranks responses or prices their harm, a policy that prefers by itself.

Knows arrays, never a model. As in losses.py, what a call returns adds up over micro-batches and devices, which take
whole pairs: where a row is one, `counts.sequences` counts pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxflow import types
from jaxflow.algorithms.losses import Parts
from jaxflow.algorithms.masked import masked_sum, on_mask
from jaxflow.algorithms.verifier import last_value

PREFERENCE_LOSSES = ("sigmoid", "ipo")


@dataclasses.dataclass(frozen=True)
class RewardModelLoss:
    """Bradley–Terry: L = ⟨−log σ(s_w − s_l − m)⟩ + c·⟨(s_w + s_l)²⟩ over pairs, w chosen, l rejected.

    s is the value at the last true position of the mask. The margin m is of Llama 2 (arXiv:2307.09288, where it is
    subtracted as here); the second term, which keeps scores around 0, of Eisenstein et al. (arXiv:2312.09244).
    """

    center_coefficient: float  # c; 0.0: off

    def __call__(
        self, values: Float[Array, "B 2 T"], batch: types.Preferences, counts: types.Counts
    ) -> tuple[Float[Array, ""], Parts]:
        """Return the loss in nats per pair and its parts; `reward_model/accuracy` is how often s_w > s_l."""
        chosen, rejected, paired = _last_values(values, batch)
        lead = chosen - rejected
        losses = jax.nn.softplus(-(lead - on_mask(batch.margins, paired)))
        loss = masked_sum(losses, paired) / counts.sequences
        parts = {
            "reward_model/loss": loss,
            "reward_model/accuracy": _share(lead > 0, paired, counts),
            "reward_model/score_margin": masked_sum(lead, paired) / counts.sequences,
            "reward_model/chosen_score": masked_sum(chosen, paired) / counts.sequences,
            "reward_model/rejected_score": masked_sum(rejected, paired) / counts.sequences,
        }
        if self.center_coefficient != 0.0:
            off_centre = masked_sum(jnp.square(chosen + rejected), paired) / counts.sequences
            loss = loss + self.center_coefficient * off_centre
        return loss, parts


@dataclasses.dataclass(frozen=True)
class CostModelLoss:
    """Safe-RLHF's cost: L = ⟨−log σ(c_w − c_l) − log σ(s_w·c_w) − log σ(s_l·c_l)⟩ over pairs (arXiv:2310.12773).

    Here w is the *more* harmful response, the rejected one, and s is +1 for an unsafe response and −1 for a safe one:
    harm alone orders the costs, and 0 is where a response begins to be unsafe. A label of 0 leaves its term out.
    """

    def __call__(
        self, values: Float[Array, "B 2 T"], batch: types.Preferences, counts: types.Counts
    ) -> tuple[Float[Array, ""], Parts]:
        """Return the loss in nats per pair and its parts.

        `cost_model/accuracy` is how often c_w > c_l, `cost_model/sign_accuracy` how often the sign of a cost tells
        its label, over both responses.
        """
        less, more, paired = _last_values(values, batch)
        losses = jax.nn.softplus(-(more - less))
        agreed = jnp.zeros_like(losses)
        for cost, harm in ((more, batch.rejected_harm), (less, batch.chosen_harm)):
            harm = on_mask(harm, paired)
            losses = losses + jnp.abs(harm) * jax.nn.softplus(-harm * cost)
            agreed = agreed + (harm * cost > 0) / 2
        loss = masked_sum(losses, paired) / counts.sequences
        return loss, {
            "cost_model/loss": loss,
            "cost_model/accuracy": _share(more > less, paired, counts),
            "cost_model/sign_accuracy": masked_sum(agreed, paired) / counts.sequences,
            "cost_model/harmful_cost": masked_sum(more, paired) / counts.sequences,
            "cost_model/harmless_cost": masked_sum(less, paired) / counts.sequences,
        }


@dataclasses.dataclass(frozen=True)
class PreferenceLoss:
    """A policy's loss on pairs, with ρ = Σ_m (log π_θ − log π_ref) of a response, w chosen, l rejected.

    sigmoid  −(1 − ε)·log σ(β(ρ_w − ρ_l)) − ε·log σ(−β(ρ_w − ρ_l))   DPO (arXiv:2305.18290), ε its noise of labels
    ipo      (ρ_w − ρ_l − 1/(2β))²                                    IPO (arXiv:2310.12036), ρ a sum as there
    """

    kind: str  # one of PREFERENCE_LOSSES
    beta: float  # β, per nat
    label_smoothing: float  # ε in [0, 0.5); read by sigmoid alone

    def __call__(
        self, output: types.TokenLogProbs, batch: types.Preferences, counts: types.Counts
    ) -> tuple[Float[Array, ""], Parts]:
        """Return the loss per pair and its parts; implicit rewards are β·ρ, `dpo/accuracy` is how often ρ_w > ρ_l.

        Raises:
          UserError: unknown kind.
        """
        mask, paired = batch.response_mask, jnp.any(batch.response_mask, axis=(1, 2))
        log_probs = jnp.sum(on_mask(output.log_probs, mask), axis=-1)
        reference_log_probs = jnp.sum(on_mask(batch.reference_log_probs, mask), axis=-1)
        chosen, rejected = jnp.moveaxis(log_probs - reference_log_probs, 1, 0)
        lead = chosen - rejected
        match self.kind:
            case "sigmoid":
                losses = (1 - self.label_smoothing) * jax.nn.softplus(-self.beta * lead)
                losses = losses + self.label_smoothing * jax.nn.softplus(self.beta * lead)
            case "ipo":
                losses = jnp.square(lead - 1 / (2 * self.beta))
            case _:
                raise types.UserError(
                    f"preference loss {self.kind!r} is unknown: choose one of {', '.join(PREFERENCE_LOSSES)}"
                )

        def pair_mean(x: Float[Array, "B"]) -> Float[Array, ""]:
            """Return the mean over all pairs of the mini-batch."""
            return masked_sum(x, paired) / counts.sequences

        loss = pair_mean(losses)
        return loss, {
            "dpo/loss": loss,
            "dpo/accuracy": _share(lead > 0, paired, counts),
            "dpo/reward_margin": pair_mean(self.beta * lead),
            "dpo/chosen_reward": pair_mean(self.beta * chosen),
            "dpo/rejected_reward": pair_mean(self.beta * rejected),
            "dpo/chosen_log_prob": pair_mean(log_probs[:, 0]),
            "dpo/rejected_log_prob": pair_mean(log_probs[:, 1]),
        }


@dataclasses.dataclass(frozen=True)
class KTOLoss:
    """KTO on single responses (arXiv:2402.01306), with ρ = Σ_m (log π_θ − log π_ref) of a response.

      wanted    λ_D·(1 − σ(β(ρ − z)))
      unwanted  λ_U·(1 − σ(β(z − ρ)))

    z, from where gains and losses count, is the batch's own, per row, and a constant: see `mismatched`.
    """

    beta: float  # β, per nat
    desirable_weight: float  # λ_D
    undesirable_weight: float  # λ_U

    def __call__(
        self, output: types.TokenLogProbs, batch: types.Judgements, counts: types.Counts
    ) -> tuple[Float[Array, ""], Parts]:
        """Return the loss per response and its parts.

        `kto/accuracy` is how often ρ − z has the sign of the label. The implicit rewards β·ρ of wanted and of unwanted
        responses are told as sums over all responses' number, with the share of the wanted beside them: whoever has
        the whole batch's parts can divide (`reward_means`).
        """
        mask, judged = batch.response_mask, jnp.any(batch.response_mask, axis=1)
        moved = on_mask(output.log_probs, mask) - on_mask(batch.reference_log_probs, mask)
        rewards = self.beta * jnp.sum(moved, axis=1)
        gains = rewards - self.beta * on_mask(batch.reference_points, judged)
        wanted = judged & (on_mask(batch.labels, judged) > 0.5)
        losses = jnp.where(
            wanted,
            self.desirable_weight * jax.nn.sigmoid(-gains),  # 1 − σ(x) = σ(−x)
            self.undesirable_weight * jax.nn.sigmoid(gains),
        )

        def over_all(x: Array, rows: Bool[Array, "B"]) -> Float[Array, ""]:
            """Return the sum over some rows, by the number of all."""
            return masked_sum(x, rows) / counts.sequences

        loss = over_all(losses, judged)
        return loss, {
            "kto/loss": loss,
            "kto/accuracy": _share((gains > 0) == wanted, judged, counts),
            "kto/desirable_share": _share(wanted, judged, counts),
            "kto/desirable_reward_sum": over_all(rewards, wanted),
            "kto/undesirable_reward_sum": over_all(rewards, judged & ~wanted),
        }


def reward_means(parts: Mapping[str, float]) -> dict[str, float]:
    """Return KTO's parts of a whole batch with means of the implicit rewards in the place of their sums.

    A kind of response that the batch has none of has no mean.
    """
    told = {name: value for name, value in parts.items() if not name.endswith("_reward_sum")}
    share = told["kto/desirable_share"]
    for kind, part in (("desirable", share), ("undesirable", 1.0 - share)):
        if part > 0.0:
            told[f"kto/{kind}_reward"] = parts[f"kto/{kind}_reward_sum"] / part
    return told


def mismatched(batch: types.Judgements) -> types.Demonstrations:
    """Put each row's response behind the prompt of the next one: what is nobody's answer, on the host.

    On these sequences KTO estimates its reference point, z = max(0, ⟨Σ_m (log π_θ − log π_ref)⟩) over rows: the KL
    of the policy as a whole, not of good or bad answers (arXiv:2402.01306, §4).
    """
    mask, lengths = np.asarray(batch.response_mask), np.asarray(batch.lengths)
    given = np.roll(np.arange(len(lengths)), 1)  # whose response stands behind each prompt
    counts = np.sum(mask, axis=1, dtype=np.int32)
    firsts = np.where(counts > 0, np.argmax(mask, axis=1), lengths).astype(np.int32)
    width = int(np.max(firsts + counts[given]))
    tokens, response_mask = np.zeros((len(lengths), width), np.int32), np.zeros((len(lengths), width), bool)
    for row, other in enumerate(given):
        start, end = firsts[row], firsts[row] + counts[other]
        tokens[row, :start] = batch.tokens[row, :start]
        tokens[row, start:end] = batch.tokens[other][mask[other]]
        response_mask[row, start:end] = True
    return types.Demonstrations(tokens, firsts + counts[given], response_mask)


def _last_values(
    values: Float[Array, "B 2 T"], batch: types.Preferences
) -> tuple[Float[Array, "B"], Float[Array, "B"], Bool[Array, "B"]]:
    """Return the last values of the chosen and of the rejected responses, and which rows hold a pair."""
    mask = batch.response_mask
    last = last_value(values.reshape(-1, values.shape[-1]), mask.reshape(-1, mask.shape[-1]))
    return last[::2], last[1::2], jnp.any(mask, axis=(1, 2))


def _share(x: Bool[Array, "B"], paired: Bool[Array, "B"], counts: types.Counts) -> Float[Array, ""]:
    return jnp.sum(x & paired, dtype=jnp.float32) / counts.sequences
