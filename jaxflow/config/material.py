"""What a run learns from: data, rewards, lessons before the run. Knows no algorithm and no device."""

from __future__ import annotations

import dataclasses

from jaxflow.config.learning import OptimizerConfig
from jaxflow.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What the policy is asked. A built-in task needs no file; files take its place."""

    task: str = "addition"  # built-in task, used while `train_files` is empty
    train_files: tuple[str, ...] = ()  # .jsonl or .parquet
    validation_files: tuple[str, ...] = ()
    # .jsonl or .parquet of prompts and responses that the role pretraining imitates (ptx); empty: the built-in task's
    # own solutions.
    pretraining_files: tuple[str, ...] = ()
    tokenizer: str = ""  # Hugging Face tokenizer directory; empty: the built-in task's own
    prompt_key: str = "prompt"  # column: text or chat messages
    # Column: a row's own sampling seed, in place of run.seed and the step; empty: none has one
    seed_key: str = ""
    # Of demonstrations: text, or a chat of one message; also: completion, messages
    response_key: str = "response"
    chosen_key: str = "chosen"  # of pairs; also found: PKU-SafeRLHF's response_0, response_1
    rejected_key: str = "rejected"
    # Of kto: whether the response was wanted, true or false; rows of pairs are two each
    label_key: str = "label"
    margin_key: str = "margin"  # of reward_model, optional: by which the chosen score should at least lead
    chosen_safe_key: str = "chosen_safe"  # of cost_model: whether the chosen, less harmful response is safe
    rejected_safe_key: str = "rejected_safe"
    # P; times rollout.samples_per_prompt = sequences per step. Of sft and kto: responses, of pairs: pairs per step.
    prompts_per_step: int = 256
    validation_prompts: int = 256  # at most; 0: all
    max_prompt_tokens: int = 512
    overlong_prompts: str = "drop"  # drop (counted) | error
    shuffle: bool = True  # a new order each epoch, from run.seed


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What judges a response: a function or a model; and what a row gets when the function fails."""

    kind: str = "function"  # function | model: the function still says which responses are accurate
    # path.py:function, verl's compute_score(data_source, solution_str, ground_truth, extra_info)
    function: str = ""
    function_arguments: str = ""  # further arguments of the function by name, a JSON object as text
    # naive: a call for each row | dapo: and a penalty for length | batch: one call with lists
    manager: str = "naive"
    scorer: str = ""  # built-in scorer of all rows while `function` is empty; empty: by the row's data source
    fallback_score: float = 0.0  # for a row whose reward fails in whatever way; counted
    max_failed_fraction: float = 0.5  # of a step's rows; above it the run stops: the function is broken
    processes: int = 4  # that run the function, in each process of the role's pool
    timeout_seconds: float = 10.0  # wall clock of one call; its process is killed
    memory_megabytes: int = 1024  # private memory of each such process, above what importing the file takes
    overlong_buffer_tokens: int = 0  # dapo: the stretch before rollout.max_response_tokens that is punished
    overlong_penalty_factor: float = 1.0  # dapo: the penalty of a response of the greatest length
    weights: str = ""  # of a reward model, as actor.weights; empty: learnt in the warm start
    preset: str = ""  # as actor.preset, of a reward model
    model: DecoderConfig | None = None  # as critic.model, of a reward model
    # probability: σ(s) in [0, 1], of a verifier | number: s itself, of a model that learnt from preferences
    model_score: str = "probability"
    # How it learns from pairs, in runs of reward_model or cost_model. It starts from `weights`; where those are empty,
    # from the backbone of actor.weights if the shapes agree, else at random.
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-5)
    )
    update_epochs: int = 1  # passes over each step's pairs
    minibatch_sequences: int = 256  # pairs per optimizer update, over all devices
    microbatch_tokens_per_device: int = 16384  # padded tokens in one forward/backward pass of one device
    center_coefficient: float = 0.0  # of reward_model: weight of (s_w + s_l)², which keeps scores around 0


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """Supervised steps on the task's own solutions before the first reinforcement-learning step."""

    steps: int = 0  # of the actor; 0: none
    sequences_per_step: int = 128
    learning_rate: float = 1e-3
    reward_steps: int = 0  # in which a reward model learns to tell right answers from wrong ones; 0: none
    reward_learning_rate: float = 1e-3
