"""Keys of a config.json, taken one by one so that none is overlooked. Knows no family and no decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jaxflow.types import UserError

# What changes no logit: how text is made and generated from, how the model was initialised, trained or saved.
_NAMES = """
    attention_dropout attn_implementation bad_words_ids begin_suppress_tokens bos_token_id cache_implementation
    chunk_size_feed_forward classifier_dropout classifier_dropout_prob cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    id2label initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length max_position_embeddings
    min_length no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_router_logits output_scores pad_token_id prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate router_aux_loss_coef
    sep_token_id summary_type suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
_WITHOUT_EFFECT = frozenset(_NAMES.split())


class Keys:
    """An object of a config.json, from which keys are taken; mistakes are gathered and raised together."""

    def __init__(self, tree: Mapping[str, object], path: str = "", problems: list[str] | None = None):
        """Take the keys of `tree`; `path` stands before their names, `problems` is an outer object's list."""
        self._left = dict(tree)
        self._path = path
        self._problems: list[str] = [] if problems is None else problems

    def inside(self, key: str, tree: Mapping[str, object]) -> Keys:
        """Return the keys of an object within; its mistakes are gathered with these."""
        return Keys(tree, f"{self._path}{key}.", self._problems)

    def problem(self, key: str, what: str) -> None:
        """Note what is wrong with a key."""
        self._problems.append(f"{self._path}{key} {what}")

    def take(self, key: str, default: object) -> object:
        """Return a key's value as it is, or the default where it is missing."""
        return self._left.pop(key, default)

    def size(self, key: str, default: int | None = None) -> int:
        """Return a whole number above 0; missing or null it is the default, if there is one."""
        value = self.take(key, None)
        value = default if value is None else value
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        self.problem(key, "is missing" if value is None else f"is {value!r}, expected a whole number above 0")
        return 1

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0; missing it is the default, if there is one."""
        value = self.take(key, default)
        number = self.as_number(key, value)
        if number <= 0:
            self.problem(key, f"is {value!r}, expected a number above 0")
            return 1.0
        return number

    def as_number(self, key: str, value: object) -> float:
        """Return a value as the finite number that it must be."""
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        self.problem(key, "is missing" if value is None else f"is {value!r}, expected a number")
        return 1.0

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false; missing it is the default."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            self.problem(key, f"is {value!r}, expected true or false")
            return default
        return value

    def expect(self, key: str, default: object, allowed: Sequence[object], why: str) -> None:
        """Note a problem unless the key has one of these values."""
        value = self.take(key, default)
        if value not in allowed:
            self.problem(key, f"is {value!r}: {why}")

    def note_the_rest(self) -> None:
        """Note every key that was not taken as a problem."""
        for key in self._left:
            self.problem(key, "is not known here")
        self._left.clear()

    def refuse_the_rest(self, where: str) -> None:
        """Raise UserError with all problems, among them every key left that might change the computation."""
        for key in [key for key in self._left if key in _WITHOUT_EFFECT or key.startswith("_")]:
            del self._left[key]
        self.note_the_rest()
        if self._problems:
            listed = "".join(f"\n  • {problem}" for problem in self._problems)
            raise UserError(
                f"{where}: not a model that jaxflow computes:{listed}\n"
                "A key that is not known and changes nothing may be removed from the file."
            )
