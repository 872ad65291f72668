"""By which rule is learned: estimator, objective, KL, corrections, constraint. Knows no model, no data, no device.

Names of choices are verl's. A group of keys that the chosen estimator or objective does not read says so in its
first line; each objective has knobs of its own, so that no width is read by a rule that it was not chosen for.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """The pull towards the reference."""

    reward_coefficient: float = 0.001  # β of −β·KL_t in the token rewards; the start value if adaptive
    # k1 | k2 | k3 | abs; full: exact, over the whole vocabulary, measured by the actor as for a loss (below).
    reward_estimator: str = "k1"
    controller: str = "fixed"  # fixed | adaptive
    target: float = 0.1  # adaptive: nats per token aimed at
    horizon_sequences: float = 10000.0  # adaptive: larger is slower
    loss_coefficient: float = 0.0  # weight of the KL term in the policy loss
    # k1 | k2 | k3 | abs, or one of them with a plus: its value, and the gradient of k2; full: exact, over the whole
    # vocabulary, from the reference's weights beside the actor's (their memory, and a second forward pass).
    loss_estimator: str = "k3"

    @property
    def exact_in_rewards(self) -> bool:
        """Return whether rewards are shaped with the KL over the whole vocabulary."""
        return self.reward_coefficient > 0 and self.reward_estimator == "full"

    @property
    def exact_in_loss(self) -> bool:
        """Return whether the policy's loss holds the KL over the whole vocabulary."""
        return self.loss_coefficient > 0 and self.loss_estimator == "full"

    @property
    def estimated(self) -> bool:
        """Return whether anything reads the reference's log-probs of sampled tokens."""
        in_rewards = self.reward_coefficient > 0 and not self.exact_in_rewards
        return in_rewards or (self.loss_coefficient > 0 and not self.exact_in_loss)


@dataclasses.dataclass(frozen=True)
class GSPOConfig:
    """Of the objectives gspo and gspo_token: their ratio is a geometric mean, near 1 by hundreds of tokens."""

    clip_ratio_low: float = 3e-4  # sequence ratio clipped at 1 − this
    clip_ratio_high: float = 4e-4  # sequence ratio clipped at 1 + this


@dataclasses.dataclass(frozen=True)
class CISPOConfig:
    """Of the objective cispo."""

    clip_ratio_low: float = 1.0  # weight bounded by 1 − this; 1: no lower bound
    clip_ratio_high: float = 4.0  # weight bounded by 1 + this


@dataclasses.dataclass(frozen=True)
class GeoMeanConfig:
    """Of the objective geo_mean (GMPO)."""

    clip_log_ratio_low: float = 0.4  # token log-ratio, nats, bounded below by minus this
    clip_log_ratio_high: float = 0.4  # token log-ratio, nats, bounded above by this


@dataclasses.dataclass(frozen=True)
class SAPOConfig:
    """Of the objective sapo."""

    temperature_positive: float = 1.0  # τ of the gate where the advantage is positive
    temperature_negative: float = 1.05  # τ where it is not


@dataclasses.dataclass(frozen=True)
class DPPOConfig:
    """Of the objectives dppo_tv and dppo_kl."""

    tv_bound: float = 0.15  # |π_θ − π_old| of the sampled token, up to which its advantage still counts
    kl_bound: float = 0.05  # nats, of the sampled token against all others
    ratio_bound: float = 20.0  # C, largest weight π_θ / π_old


@dataclasses.dataclass(frozen=True)
class ClipCovConfig:
    """Of the objective clip_cov; it reads algorithm.clip_ratio_low and _high as well."""

    fraction: float = 2e-4  # of a step's tokens, that lose their gradient
    covariance_low: float = 1.0  # they are drawn from those whose covariance lies in between
    covariance_high: float = 5.0


@dataclasses.dataclass(frozen=True)
class KLCovConfig:
    """Of the objective kl_cov."""

    fraction: float = 2e-4  # of a step's tokens, those of largest covariance
    coefficient: float = 1.0  # of their penalty |log π_θ − log π_old|


@dataclasses.dataclass(frozen=True)
class GDPOConfig:
    """Of the estimator gdpo: rewards that the reward function returns beside the score, normalised one by one."""

    components: tuple[
        str, ...
    ] = ()  # each "key=weight": a key of the mapping that the reward function returns

    @property
    def weights(self) -> dict[str, float]:
        """Return the weight of each component by its key, in their order; ValueError for what is no key=weight."""
        pairs = (component.rpartition("=") for component in self.components)
        return {key: float(weight) for key, _, weight in pairs}


@dataclasses.dataclass(frozen=True)
class OffPolicyConfig:
    """What is done about data that another distribution μ sampled than π_old, which the ratio is taken against."""

    level: str = "off"  # off | token | sequence | geometric: of which ratio π_old / μ the weight is made
    bounds: str = "truncate"  # truncate: at `upper` (TIS) | mask: 0 outside [lower, upper] (IcePop)
    lower: float = 0.5  # read by mask alone
    upper: float = 2.0
    rejection: str = "off"  # off | token | sequence | geometric: whose ratio outside the bounds rejects it
    rejection_lower: float = 0.5
    rejection_upper: float = 2.0
    # The sampler's own log-probs stand for π_old: one scoring pass less, and no weight, which the ratio holds.
    bypass: bool = False
    # δ: sequences of negative advantage whose mean log(π_old / π_θ) is above it are dropped; nats; 0: off.
    negative_sequence_bound: float = 0.0


@dataclasses.dataclass(frozen=True)
class DynamicSamplingConfig:
    """DAPO's: groups whose rewards are all equal teach nothing and are replaced by groups of further prompts."""

    max_refills: int = 0  # more rounds of generation per step, at most; 0: off
    metric: str = "score"  # score | accuracy: what must differ within a group


@dataclasses.dataclass(frozen=True)
class ReweightingConfig:
    """PF-PPO's: responses count by their score, in expectation as if resampled so."""

    method: str = "off"  # off | pow | max_min | max_random
    power: float = 2.0  # pow: weights are |score| to this


@dataclasses.dataclass(frozen=True)
class LagrangeConfig:
    """Of safe_rlhf: the multiplier λ on the costs; it moves by ln λ ← ln λ + α·λ·(mean cost − threshold)."""

    initial: float = 1.0  # λ of the first step
    learning_rate: float = 0.1  # α
    maximum: float = 5.0  # λ never exceeds it
    window_episodes: int = 128  # last responses that the mean cost is taken over
    threshold: float = 0.0  # mean cost of a response that is still allowed, in units of the cost


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """Of dpo and kto: a policy that learns from what was preferred."""

    beta: float = 0.1  # β, per nat: larger holds the policy closer to the reference
    loss: str = "sigmoid"  # of dpo: sigmoid (DPO) | ipo
    label_smoothing: float = 0.0  # of sigmoid: share of pairs whose order is thought to be wrong
    # Of kto: λ_D and λ_U. The paper: λ_D times the wanted responses is 1 to 4/3 of λ_U times the unwanted ones.
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """The reinforcement-learning rule."""

    # The dataflow: ppo | remax | grpo | safe_rlhf; before them sft | reward_model | cost_model | dpo | kto; or
    # path.py:NAME of one's own.
    name: str = "ppo"
    # gae | grpo | grpo_passk | reinforce_plus_plus | reinforce_plus_plus_baseline | rloo | opo | remax | gpg | gdpo;
    # empty: the dataflow's own (gae of ppo and safe_rlhf, remax of remax, grpo of grpo)
    estimator: str = ""
    discount: float = 1.0  # γ per token
    gae_lambda: float = 1.0  # λ
    score_bound: float = 0.0  # scores and costs count as at most ± this; 0: off (Safe-RLHF has 50)
    whiten_advantages: bool = True  # gae: over the whole step; the others whiten where their papers do
    normalize_by_std: bool = True  # grpo, grpo_passk, gdpo: divide by the group's deviation; Dr.GRPO does not
    gdpo: GDPOConfig = GDPOConfig()
    # vanilla | gspo | gspo_token | cispo | geo_mean | sapo | dppo_tv | dppo_kl | clip_cov | kl_cov | gpg, or
    # path.py:NAME of a function of one's own: (log_probs, old_log_probs, advantages, mask) -> token losses
    objective: str = "vanilla"
    clip_ratio_low: float = 0.2  # vanilla, clip_cov: ratio clipped at 1 − this
    clip_ratio_high: float = 0.2  # vanilla, clip_cov: ratio clipped at 1 + this
    dual_clip: float = 3.0  # vanilla: bound c > 1 of the loss at negative advantages; 0: off
    gspo: GSPOConfig = GSPOConfig()
    cispo: CISPOConfig = CISPOConfig()
    geo_mean: GeoMeanConfig = GeoMeanConfig()
    sapo: SAPOConfig = SAPOConfig()
    dppo: DPPOConfig = DPPOConfig()
    clip_cov: ClipCovConfig = ClipCovConfig()
    kl_cov: KLCovConfig = KLCovConfig()
    value_clip: float = 0.5  # half-width of the value clip; 0: off
    entropy_coefficient: float = 0.0
    ptx_coefficient: float = 0.0  # γ of the cross-entropy on demonstrations in the policy loss; 0: off
    # token-mean | token-sum | seq-mean-token-sum | seq-mean-token-sum-norm (÷ rollout.max_response_tokens)
    # | seq-mean-token-mean
    loss_aggregation: str = "token-mean"
    kl: KLConfig = KLConfig()
    off_policy: OffPolicyConfig = OffPolicyConfig()
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    reweighting: ReweightingConfig = ReweightingConfig()
    lagrange: LagrangeConfig = LagrangeConfig()
    preference: PreferenceConfig = PreferenceConfig()
