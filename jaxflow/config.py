"""The schema of a run: every key with its default, written once, and its unit.

Knows what a run may be asked, not how anything is done. A config file returns an `ml_collections.ConfigDict`;
`from_config_dict` turns it into the frozen tree below or says what is wrong. Rooms below the controller never
see these classes: they are handed plain values.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import config_dict, config_flags

from jaxflow.config_tree import group_of, key_paths, keys_in, leaves, read_group, unknown_key, unknown_keys
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.types import UserError


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
    """When all state that decides the next step is saved. At the end and on SIGTERM/SIGINT it always is."""

    every_steps: int = 0  # steps between saves; 0: by time alone
    every_minutes: float = 10.0  # minutes between saves; 0: by steps alone
    keep: int = 2  # newest checkpoints kept
    resume: str = "auto"  # auto: continue what the workdir holds | never: refuse a workdir that holds a run


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes of one pool; data × fsdp × tensor is the number of its devices."""

    data: int = 1  # data-parallel replicas
    fsdp: int = 1  # ways the weights and optimizer are sharded over replicas that see different rows (ZeRO-3)
    tensor: int = 1  # tensor-parallel size in training and scoring, t
    generation_tensor: int = 1  # tensor-parallel size in generation, t_g; divides `tensor`


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """Devices that the roles placed on them take turns on; pools have no device in common and run at once."""

    roles: tuple[str, ...] = ()  # each role of the algorithm stands in exactly one pool
    hosts: int = 1  # worker processes, one per host; together they run one mesh
    devices_per_host: int = 1
    mesh: MeshConfig = MeshConfig()


def _one_pool() -> dict[str, PoolConfig]:
    return {"main": PoolConfig(roles=("actor", "critic", "reference", "reward", "estimator"))}


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """Where the run happens, and how long it waits for what does not answer."""

    launcher: str = "ray"  # ray: workers in Ray actors | inprocess: the same roles in this process, to debug
    platform: str = "cpu"  # cpu: simulated devices | gpu
    pools: Mapping[str, PoolConfig] = dataclasses.field(default_factory=_one_pool)  # by a name of your own
    address: str = ""  # empty: a Ray of its own on this machine | auto or host:port: join a running one
    compilation_cache: str = "user"  # user: the user's cache folder | a path | off
    start_timeout_seconds: float = 120.0  # workers must be up by then
    heartbeat_timeout_seconds: float = 60.0  # a worker that gives no sign of life for so long is lost
    # Longest call of a role; then all workers' Python stacks are written down and the workers are lost.
    stage_timeout_seconds: float = 3600.0
    max_restarts: int = 2  # times that one run rebuilds lost workers from the last checkpoint before it fails


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW behind a global-norm clip, with linear warm-up and a schedule."""

    learning_rate: float = 1e-6  # peak
    schedule: str = (
        "constant"  # constant | cosine | linear (down to `final_fraction` at the run's last update)
    )
    final_fraction: float = 0.0  # of the peak, where cosine or linear end
    warmup_updates: int = 0  # optimizer updates from 0 up to the peak
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # global norm of the averaged gradient; 0: no clip
    max_skipped_updates: int = (
        10  # non-finite updates in a row before the run stops; each is skipped, counted
    )


@dataclasses.dataclass(frozen=True)
class ActorConfig:
    """The policy: model, optimizer and how a step's sequences become updates."""

    model: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    weights: str = ""  # directory of weights saved by jaxflow to start from; empty: random
    optimizer: OptimizerConfig = OptimizerConfig()
    update_epochs: int = 1  # passes over each step's sequences
    minibatch_sequences: int = 256  # sequences per optimizer update, over all devices
    microbatch_tokens_per_device: int = 16384  # padded tokens in one forward/backward pass of one device


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The value model. It starts from the actor's first weights unless told otherwise."""

    model: DecoderConfig | None = None  # None: the actor's shape; keys left unset (null) follow actor.model's
    weights: str = (
        ""  # as actor.weights; empty: the actor's first weights where the shapes agree, else random
    )
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
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
    ignore_end_token: bool = False  # generate to the limit (benchmarks)
    dtype: str = "float32"  # float32 | bfloat16, of generation weights and key/value cache
    sequences_per_device: int = 256  # rows generated at once by each device
    parts: int = 1  # calls that generate a step's rows; other pools score a part while the next is generated
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
    loss_aggregation: str = (
        "token-mean"  # token-mean | seq-mean-token-sum | seq-mean-token-mean | seq-mean-token-sum-norm
    )
    kl: KLConfig = KLConfig()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the policy is asked. A built-in task needs no file; files take its place."""

    task: str = "addition"  # built-in task, used while `train_files` is empty
    train_files: tuple[str, ...] = ()  # .jsonl or .parquet
    validation_files: tuple[str, ...] = ()
    tokenizer: str = ""  # Hugging Face tokenizer directory; empty: the built-in task's own
    prompt_key: str = "prompt"  # column: text or chat messages
    prompts_per_step: int = 256  # P; times rollout.samples_per_prompt = sequences per step
    validation_prompts: int = 256  # at most; 0: all
    max_prompt_tokens: int = 512
    overlong_prompts: str = "drop"  # drop (counted) | error
    shuffle: bool = True  # a new order each epoch, from run.seed


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What judges a response: a function or a model; and what a row gets when the function fails."""

    kind: str = "function"  # function | model: the function still says which responses are accurate
    function: str = (
        ""  # path.py:function with compute_score(data_source, solution_str, ground_truth, extra_info)
    )
    fallback_score: float = 0.0  # for a row whose reward raises or is not a finite number; counted
    max_failed_fraction: float = 0.5  # of a step's rows; above it the run stops: the function is broken
    weights: str = ""  # of a reward model, as actor.weights; empty: learnt in the warm start
    model: DecoderConfig | None = None  # as critic.model, of a reward model


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """Supervised steps on the task's own solutions before the first reinforcement-learning step."""

    steps: int = 0  # of the actor; 0: none
    sequences_per_step: int = 128
    learning_rate: float = 1e-3
    reward_steps: int = 0  # in which a reward model learns to tell right answers from wrong ones; 0: none
    reward_learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """What the run writes beside checkpoints. metrics.jsonl and config.json are always written."""

    tensorboard: bool = True
    samples_per_evaluation: int = (
        6  # rows shown in the console table; all validation answers go to samples.jsonl
    )
    timeline_steps: int = 1000  # first steps after each start of the run that timeline.json shows; 0: none


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, whole."""

    run: RunConfig = RunConfig()
    cluster: ClusterConfig = dataclasses.field(default_factory=ClusterConfig)
    data: DataConfig = DataConfig()
    reward: RewardConfig = RewardConfig()
    actor: ActorConfig = ActorConfig()
    critic: CriticConfig = CriticConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def critic_model(self) -> DecoderConfig:
        """Return the critic's decoder: its own where one is asked for, the actor's otherwise."""
        return self.actor.model if self.critic.model is None else self.critic.model

    @property
    def reward_model(self) -> DecoderConfig:
        """Return the decoder of a reward model: its own where one is asked for, the actor's otherwise."""
        return self.actor.model if self.reward.model is None else self.reward.model


# Sections whose `model` follows actor.model in the keys that it leaves unset.
_FOLLOWERS = ("critic", "reward")


def default_config_dict() -> config_dict.ConfigDict:
    """Return every key with its default, for a config file to change and the command line to override.

    `critic.model` and `reward.model` are there with empty keys of the right types: those that stay empty follow
    `actor.model`.
    """
    return config_dict.ConfigDict(_default_tree(Config()))


def pool(
    roles: Sequence[str],
    hosts: int = PoolConfig.hosts,
    devices_per_host: int = PoolConfig.devices_per_host,
    **mesh: int,
) -> config_dict.ConfigDict:
    """Return one pool for a config file: `config.cluster.pools = {"main": pool([...], 1, 4, data=2, tensor=2)}`."""
    chosen = PoolConfig(tuple(roles), hosts, devices_per_host, MeshConfig(**mesh))
    return config_dict.ConfigDict(_default_tree(chosen))


def from_config_dict(values: config_dict.ConfigDict) -> Config:
    """Turn a config file's result into the frozen tree; keys that are missing take their defaults.

    Raises `UserError` with every unknown key (and the nearest right one) and every wrong type at once.
    """
    return _from_tree(values.to_dict(), "the config")


def to_json(config: Config) -> dict[str, object]:
    """Return the tree as plain JSON values: dicts, lists, strings, numbers, true, false and null."""
    return json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))


def from_json(tree: Mapping[str, object]) -> Config:
    """Invert `to_json`. Raises `UserError` as `from_config_dict` does."""
    return _from_tree(tree, "the saved config")


def flatten(config: Config) -> dict[str, object]:
    """Return every value under its dotted key, in the order of the schema."""
    return dict(leaves(dataclasses.asdict(config)))


def difference(a: Config, b: Config) -> list[str]:
    """Return the dotted keys in which two configs differ, in the order of the schema."""
    old, new = flatten(a), flatten(b)
    known = key_paths(Config, dataclasses.asdict(a), dataclasses.asdict(b))
    return [key for key in known if old.get(key) != new.get(key)]


def override(values: config_dict.ConfigDict, arguments: Sequence[str]) -> list[str]:
    """Set what `--config.KEY=VALUE` arguments say in a config file's result; return the other arguments.

    Raises `UserError` with every key that neither the schema nor the file's pools have, or a value that cannot be.
    """
    _complete(values)
    check_overrides(arguments, values)
    parser = flags.FlagValues()
    parser.set_gnu_getopt()
    line = ["", *arguments]
    config_flags.DEFINE_config_dict("config", values, flag_values=parser, sys_argv=line)
    try:
        return parser(line, known_only=True)[1:]
    except (flags.Error, TypeError) as error:
        raise UserError(f"the command line: {str(error).splitlines()[0]}") from error


def check_overrides(arguments: Sequence[str], values: config_dict.ConfigDict) -> None:
    """Refuse `--config.KEY=VALUE` arguments whose key the schema, or the file's pools, lack, all at once.

    The flag parser would stop at the first one with a stack trace.
    """
    matches = (re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in arguments)
    keys = list(dict.fromkeys(match[1] for match in matches if match is not None))
    known = key_paths(Config, values.to_dict())
    problems = [unknown_key(key, known) for key in keys if key not in known]
    problems += [
        f"{key}: is a group; set one of {', '.join(keys_in(key, known))}"
        for key in keys
        if known.get(key, False)
    ]
    refuse("the command line", problems)


def _complete(values: config_dict.ConfigDict) -> None:
    """Add the keys that a config file left out: the flag parser sets only what is there."""
    defaults = _default_tree(Config())
    cluster = values.to_dict().get("cluster")
    if isinstance(cluster, Mapping) and isinstance(cluster.get("pools"), Mapping):
        defaults["cluster"]["pools"] = {name: _default_tree(PoolConfig()) for name in cluster["pools"]}
    with values.unlocked():
        _fill(values, defaults)


def _fill(values: config_dict.ConfigDict, defaults: Mapping[str, typing.Any]) -> None:
    for key, default in defaults.items():
        if key not in values:
            values[key] = default
        elif isinstance(default, Mapping) and isinstance(values[key], config_dict.ConfigDict):
            _fill(values[key], default)


def refuse(what: str, problems: Sequence[str]) -> None:
    """Raise one `UserError` with a line per problem; do nothing where there is none."""
    if problems:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise UserError("\n".join([f"{what} has {count}:", *(f"  • {problem}" for problem in problems)]))


def _default_tree(group: object) -> dict[str, object]:
    tree: dict[str, object] = {}
    for key, hint in typing.get_type_hints(type(group)).items():
        value = vars(group)[key]
        if dataclasses.is_dataclass(value):
            tree[key] = _default_tree(value)
        elif isinstance(value, Mapping):
            tree[key] = {name: _default_tree(entry) for name, entry in value.items()}
        elif isinstance(hint, types.UnionType):
            kinds = typing.get_type_hints(group_of(hint))
            tree[key] = {name: config_dict.placeholder(kind) for name, kind in kinds.items()}
        else:
            tree[key] = value
    return tree


def _from_tree(tree: Mapping[str, typing.Any], what: str) -> Config:
    problems = unknown_keys(Config, tree)
    config = read_group(Config, tree, "", problems)
    refuse(what, problems)
    for section in _FOLLOWERS:
        group = vars(config)[section]
        if group.model is not None:
            asked = {key for key, value in tree[section]["model"].items() if value is not None}
            own = {key: value for key, value in vars(group.model).items() if key in asked}
            model = dataclasses.replace(config.actor.model, **own)
            config = dataclasses.replace(config, **{section: dataclasses.replace(group, model=model)})
    return config
