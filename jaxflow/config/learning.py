"""What learns: models, optimizers, rollout. Knows no rule of learning (algorithm.py), no data and no device."""

from __future__ import annotations

import dataclasses

from jaxflow.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW behind a global-norm clip, with linear warm-up and a schedule."""

    learning_rate: float = 1e-6  # peak
    # constant | cosine | linear (down to `final_fraction` at the run's last update)
    schedule: str = "constant"
    final_fraction: float = 0.0  # of the peak, where cosine or linear end
    warmup_updates: int = 0  # optimizer updates from 0 up to the peak
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # global norm of the averaged gradient; 0: no clip
    # Non-finite updates in a row before the run stops; each is skipped, counted
    max_skipped_updates: int = 10


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, trained in place of the weights beside which they lie (arXiv 2106.09685)."""

    rank: int = 0  # r; 0: no adapters, all weights are trained
    alpha: float = 16.0  # α; what an adapter adds is scaled by α / r
    targets: tuple[str, ...] = ("query", "key", "value", "output", "gate", "up", "down")  # adapted weights
    base_dtype: str = "float32"  # float32 | bfloat16, of the weights that are not trained


@dataclasses.dataclass(frozen=True)
class ActorConfig:
    """The policy: model, optimizer and how a step's sequences become updates."""

    model: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    # Name of a published shape (models/presets.py) that `model` takes; empty: `model` as it is
    preset: str = ""
    # Directory of weights to start from, jaxflow's or Hugging Face's, whose shape `model` takes; empty: random.
    weights: str = ""
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    # Weight of the loss that evens out a mixture's load on its experts (router_aux_loss_coef of Hugging Face); 0: off.
    # Above 0 a forward pass more is made of each mini-batch.
    router_aux_loss_coefficient: float = 0.0
    update_epochs: int = 1  # passes over each step's sequences
    minibatch_sequences: int = 256  # sequences per optimizer update, over all devices
    microbatch_tokens_per_device: int = 16384  # padded tokens in one forward/backward pass of one device


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The value model. It starts from the actor's first weights unless told otherwise."""

    model: DecoderConfig | None = None  # None: the actor's shape; keys left unset (null) follow actor.model's
    preset: str = ""  # as actor.preset
    # As actor.weights; empty: the actor's first weights where the shapes agree, else random
    weights: str = ""
    lora: LoraConfig = LoraConfig()  # its head is trained whole beside adapters
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    router_aux_loss_coefficient: float = 0.0  # as actor.router_aux_loss_coefficient
    warmup_steps: int = 0  # first steps of the run in which the critic learns and the policy does not
    update_epochs: int = 1
    minibatch_sequences: int = 256  # sequences per optimizer update, over all devices
    microbatch_tokens_per_device: int = 16384  # padded tokens in one forward/backward pass of one device


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled."""

    samples_per_prompt: int = 1  # G, sequences generated for each prompt
    max_response_tokens: int = 512  # end token included
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    # Of what top_k and top_p left: at least this times the likeliest token's chance; 0: off
    min_p: float = 0.0
    # Drawn before an end token may be, or a stop string count; 0: the first may end
    min_response_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()  # end a response, beside the tokenizer's end tokens
    stop_strings: tuple[str, ...] = ()  # text that ends a response, with the token that completes it
    ignore_end_token: bool = False  # the tokenizer's end tokens end nothing (benchmarks)
    dtype: str = "float32"  # float32 | bfloat16, of generation weights and key/value cache
    sequences_per_device: int = 256  # rows generated at once by each device; others wait for one to end
    # Response tokens of a call in training, over all devices, after which it stops; 0: none
    token_budget: int = 0
    deadline_seconds: float = 0.0  # of a call in training, after which it stops; 0: none
    parts: int = 1  # calls that generate a step's rows; other pools score a part while the next is generated
    score_microbatch_tokens_per_device: int = 16384  # padded tokens in one scoring pass of one device
    validation_temperature: float = 0.0  # 0: validation is greedy; the rest of sampling is training's
    # Answers to each validation prompt; above 1 what the best, the worst, most of them say
    validation_samples: int = 1
