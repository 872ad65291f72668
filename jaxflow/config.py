"""The schema of a run: every key with its default, written once, and its unit.

Knows what a run may be asked, not how anything is done. A config file returns an `ml_collections.ConfigDict`;
`from_config_dict` turns it into the frozen tree below or says what is wrong. Rooms below the controller never
see these classes: they are handed plain values.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence

from ml_collections import config_dict

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
    """The reward function and what a row gets when it fails."""

    function: str = (
        ""  # path.py:function with compute_score(data_source, solution_str, ground_truth, extra_info)
    )
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
    samples_per_evaluation: int = (
        6  # rows shown in the console table; all validation answers go to samples.jsonl
    )


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

    @property
    def critic_model(self) -> DecoderConfig:
        """Return the critic's decoder: its own where one is asked for, the actor's otherwise."""
        return self.actor.model if self.critic.model is None else self.critic.model


def default_config_dict() -> config_dict.ConfigDict:
    """Return every key with its default, for a config file to change and the command line to override.

    `critic.model` is there with empty keys of the right types: those that stay empty follow `actor.model`.
    """
    return config_dict.ConfigDict(_default_tree(Config()))


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

    def leaves(tree: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(leaves(dataclasses.asdict(config), ""))


def difference(a: Config, b: Config) -> list[str]:
    """Return the dotted keys in which two configs differ, in the order of the schema."""
    old, new = flatten(a), flatten(b)
    return [key for key, _ in _schema_paths(Config, "") if old.get(key) != new.get(key)]


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse `--config.KEY=VALUE` arguments whose key the schema lacks, all at once, before flags are parsed.

    The flag parser would stop at the first one with a stack trace.
    """
    matches = (re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in arguments)
    keys = list(dict.fromkeys(match[1] for match in matches if match is not None))
    paths = dict(_schema_paths(Config, ""))
    problems = [_unknown_key(key) for key in keys if key not in paths]
    problems += [f"{key}: is a group; set one of {_keys_below(key)}" for key in keys if paths.get(key, False)]
    refuse("the command line", problems)


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
        elif isinstance(hint, types.UnionType):
            kinds = typing.get_type_hints(_group_of(hint))
            tree[key] = {name: config_dict.placeholder(kind) for name, kind in kinds.items()}
        else:
            tree[key] = value
    return tree


def _from_tree(tree: Mapping[str, typing.Any], what: str) -> Config:
    problems: list[str] = []
    config = _read_group(Config, tree, "", problems)
    refuse(what, problems)
    if config.critic.model is None:
        return config
    asked = {key for key, value in tree["critic"]["model"].items() if value is not None}
    own = {key: value for key, value in vars(config.critic.model).items() if key in asked}
    critic = dataclasses.replace(config.critic, model=dataclasses.replace(config.actor.model, **own))
    return dataclasses.replace(config, critic=critic)


def _read_group(group: type, tree: Mapping[str, object], prefix: str, problems: list[str]) -> typing.Any:
    hints = typing.get_type_hints(group)
    problems += [_unknown_key(f"{prefix}{key}") for key in tree if key not in hints]
    known = {key: hint for key, hint in hints.items() if key in tree}
    return group(**{k: _read_value(hint, tree[k], f"{prefix}{k}", problems) for k, hint in known.items()})


def _read_value(hint: typing.Any, value: object, path: str, problems: list[str]) -> object:
    group = _group_of(hint)
    if isinstance(hint, types.UnionType):
        if isinstance(value, Mapping):
            value = {key: item for key, item in value.items() if item is not None}
        if value is None or value == {}:
            return None
    if group is not None and isinstance(value, Mapping):
        return _read_group(group, value, f"{path}.", problems)
    # A bool is an int to Python; in a config it is a mistake.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number and math.isfinite(value):
        return float(value)
    if hint is int and is_number and isinstance(value, int):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    is_list = typing.get_origin(hint) is tuple and isinstance(value, list | tuple)
    if is_list and all(isinstance(item, str) for item in value):
        return tuple(value)
    problems.append(f"{path}: expected {_kind(hint)}, got {value!r} ({type(value).__name__})")
    return value


def _kind(hint: typing.Any) -> str:
    if _group_of(hint) is not None:
        return "a group of keys"
    kinds = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    return kinds.get(hint, "a list of texts")


def _group_of(hint: typing.Any) -> type | None:
    """Return the dataclass that a field holds (optionally), or None where it holds a plain value."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)


def _schema_paths(group: type, prefix: str) -> Iterator[tuple[str, bool]]:
    """Yield every dotted key of the schema and whether it is a group."""
    for key, hint in typing.get_type_hints(group).items():
        below = _group_of(hint)
        yield f"{prefix}{key}", below is not None
        if below is not None:
            yield from _schema_paths(below, f"{prefix}{key}.")


def _keys_below(path: str) -> str:
    prefix = f"{path}." if path else ""
    below = (key.removeprefix(prefix) for key, _ in _schema_paths(Config, "") if key.startswith(prefix))
    return ", ".join(key for key in below if "." not in key)


def _unknown_key(path: str) -> str:
    """Say which right key, in any group, is most like a wrong one: by spelling, initials, then by group."""
    group, _, name = path.rpartition(".")

    def likeness(candidate: str) -> tuple[float, float]:
        candidate_group, _, candidate_name = candidate.rpartition(".")
        initials = "".join(word[0] for word in candidate_name.split("_"))
        same_initials = len(name) > 1 and name == initials
        of_names = 1.0 if same_initials else difflib.SequenceMatcher(None, name, candidate_name).ratio()
        return of_names, difflib.SequenceMatcher(None, group, candidate_group).ratio()

    ranked = [(*likeness(key), key) for key, _ in _schema_paths(Config, "")]
    alike = [(of_names + 0.5 * of_groups, key) for of_names, of_groups, key in ranked if of_names >= 0.6]
    if alike:
        return f"{path}: no such key; nearest: {max(alike)[1]}"
    known = group if any(key == group for key, is_group in _schema_paths(Config, "") if is_group) else ""
    return f"{path}: no such key; {known or 'the config'} holds: {_keys_below(known)}"
