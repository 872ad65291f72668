"""The schema of a run: every key with its default, written once, and its unit.

Knows what a run may be asked, not how anything is done. A config file returns an `ml_collections.ConfigDict`;
`from_config_dict` turns it into the frozen tree below or says what is wrong. Rooms below the controller never
see these classes: they are handed plain values.
"""

from __future__ import annotations

import dataclasses

from jaxflow.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long, and from which seed."""

    seed: int = 0  # everything random in the run is a function of it
    total_steps: int = 100  # reinforcement-learning steps
    evaluate_every_steps: int = 10  # 0: never during the run (still before and after, see below)
    evaluate_before: bool = True  # evaluate before the first step
    evaluate_after: bool = True  # evaluate after the last step


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When all state that decides the next step is saved. A save at the end and on SIGTERM/SIGINT is always on."""

    every_steps: int = 0  # steps between saves; 0: by time alone
    every_minutes: float = 10.0  # minutes between saves; 0: by steps alone
    keep: int = 2  # newest checkpoints kept
    resume: str = "auto"  # auto: continue what the workdir holds | never: refuse a workdir that holds a run


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes of the pool; their product is the number of devices."""

    data: int = 1  # data-parallel replicas
    fsdp: int = 1  # ways the weights and optimizer are sharded over replicas that see different rows (ZeRO-3)
    tensor: int = 1  # tensor-parallel size in training and scoring, t
    generation_tensor: int = 1  # tensor-parallel size in generation, t_g; divides `tensor`


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """Where the run happens."""

    launcher: str = "ray"  # ray: workers in Ray actors | inprocess: the same roles in this process, to debug
    platform: str = "cpu"  # cpu: simulated devices | gpu
    devices: int = 1  # devices of the pool that all roles share
    mesh: MeshConfig = MeshConfig()
    compilation_cache: str = "user"  # user: the user's cache folder | a path | off
    start_timeout_seconds: float = 120.0  # workers must be up by then


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW behind a global-norm clip, with linear warm-up and a schedule."""

    learning_rate: float = 1e-6  # peak
    schedule: str = "constant"  # constant | cosine | linear (down to `final_fraction` at the run's last update)
    final_fraction: float = 0.0  # of the peak, where cosine or linear end
    warmup_updates: int = 0  # optimizer updates from 0 up to the peak
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # global norm of the averaged gradient; 0: no clip
    max_skipped_updates: int = 10  # non-finite updates in a row before the run stops; each is skipped, counted


@dataclasses.dataclass(frozen=True)
class ActorConfig:
    """The policy: model, optimizer and how a step's sequences become updates."""

    model: DecoderConfig = DecoderConfig()
    weights: str = ""  # directory of weights saved by jaxflow to start from; empty: random
    optimizer: OptimizerConfig = OptimizerConfig()
    update_epochs: int = 1  # passes over each step's sequences
    minibatch_sequences: int = 256  # sequences per optimizer update, over all devices
    microbatch_tokens_per_device: int = 16384  # padded tokens in one forward/backward pass of one device


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The value model. It starts from the actor's first weights unless told otherwise."""

    model: DecoderConfig | None = None  # None: the actor's shape
    weights: str = ""  # as actor.weights; empty: the actor's first weights where the shapes agree, else random
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    update_epochs: int = 1
    minibatch_sequences: int = 256  # sequences per optimizer update, over all devices
    microbatch_tokens_per_device: int = 16384  # padded tokens in one forward/backward pass of one device
    warmup_steps: int = 0  # first steps in which the critic alone is updated


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled."""

    samples_per_prompt: int = 1  # G, sequences generated for each prompt
    max_response_tokens: int = 512  # end token included
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    ignore_end_token: bool = False  # generate to the limit (benchmarks)
    dtype: str = "float32"  # float32 | bfloat16, of generation weights and key/value cache
    sequences_per_device: int = 256  # rows generated at once by each device
    score_microbatch_tokens_per_device: int = 16384  # padded tokens in one scoring pass of one device
    validation_temperature: float = 0.0  # validation is greedy, one sample


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """The pull towards the reference."""

    reward_coefficient: float = 0.001  # β of −β·KL_t in the token rewards; the start value if adaptive
    reward_estimator: str = "k1"  # k1 | k2 | k3
    controller: str = "fixed"  # fixed | adaptive
    target: float = 0.1  # adaptive: nats per token aimed at
    horizon_sequences: float = 10000.0  # adaptive: larger is slower
    loss_coefficient: float = 0.0  # weight of the KL term in the policy loss
    loss_estimator: str = "k3"  # k1 | k2 | k3


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """The reinforcement-learning rule."""

    name: str = "ppo"  # the dataflow
    discount: float = 1.0  # γ per token
    gae_lambda: float = 1.0  # λ
    whiten_advantages: bool = True  # over the whole step
    clip_ratio_low: float = 0.2  # ratio clipped at 1 − this
    clip_ratio_high: float = 0.2  # ratio clipped at 1 + this
    dual_clip: float = 3.0  # bound c > 1 of the loss at negative advantages; 0: off
    value_clip: float = 0.5  # half-width of the value clip; 0: off
    entropy_coefficient: float = 0.0
    loss_aggregation: str = "token-mean"  # token-mean | seq-mean-token-sum | seq-mean-token-mean | seq-mean-token-sum-norm
    kl: KLConfig = KLConfig()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the policy is asked. A built-in task needs no file; files take its place."""

    task: str = "addition"  # built-in task, used while `train_files` is empty
    train_files: tuple[str, ...] = ()  # .jsonl or .parquet
    validation_files: tuple[str, ...] = ()
    tokenizer: str = ""  # Hugging Face tokenizer directory; empty: the built-in task's own
    prompt_key: str = "prompt"  # column: text or chat messages
    prompts_per_step: int = 64  # P; times rollout.samples_per_prompt = sequences per step
    validation_prompts: int = 256  # at most; 0: all
    max_prompt_tokens: int = 512
    overlong_prompts: str = "drop"  # drop (counted) | error
    shuffle: bool = True  # a new order each epoch, from run.seed


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The reward function and what a row gets when it fails."""

    function: str = ""  # path.py:function with compute_score(data_source, solution_str, ground_truth, extra_info)
    fallback_score: float = 0.0  # for a row whose reward raises or is not a finite number; counted
    max_failed_fraction: float = 0.5  # of a step's rows; above it the run stops: the function is broken


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """Supervised steps on the task's own solutions before the first reinforcement-learning step."""

    steps: int = 0  # 0: none
    sequences_per_step: int = 128
    learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """What the run writes beside checkpoints. metrics.jsonl and config.json are always written."""

    tensorboard: bool = True
    samples_per_evaluation: int = 6  # rows shown in the console table; all validation answers go to samples.jsonl


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, whole."""

    run: RunConfig = RunConfig()
    cluster: ClusterConfig = ClusterConfig()
    data: DataConfig = DataConfig()
    reward: RewardConfig = RewardConfig()
    actor: ActorConfig = ActorConfig()
    critic: CriticConfig = CriticConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
