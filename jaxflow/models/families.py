"""The families of transformers that one decoder covers, and what each one's config.json says in its own way.

What all of them say alike, and rotary positions, are `config_json`'s. Knows no tensor and no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxflow.models.config_keys import Keys
from jaxflow.models.decoder_config import DecoderConfig

TOKENS, SCALAR = "tokens", "scalar"
"""What a checkpoint ends in: a distribution over tokens, or one number."""

LOCAL, GLOBAL = "sliding_attention", "full_attention"
"""Kinds of layers: one sees a window, or all."""

_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture of transformers: what its config.json says beside what all say."""

    name: str  # of the class of language models, before "ForCausalLM"
    model_type: str
    read: Callable[[Keys, int, int], dict[str, Any]]  # keys, head width, layers -> fields of DecoderConfig
    write: Callable[[DecoderConfig], dict[str, Any]]
    tied: bool = False  # where config.json does not say
    rope_theta: float = 10000.0  # where config.json does not say
    head_width: int = 0  # where config.json does not say; 0: width / heads
    local_rope: bool = False  # local layers have a base of their own
    classifier: str = ""  # name before "ForSequenceClassification", where another

    def class_name(self, head: str) -> str:
        """Return the architecture that ends in this head."""
        if head == TOKENS:
            return f"{self.name}ForCausalLM"
        return f"{self.classifier or self.name}ForSequenceClassification"

    def head_of(self, architecture: str) -> str | None:
        """Return what an architecture ends in, None where it is none of this family."""
        if architecture == f"{self.name}ForCausalLM":
            return TOKENS
        names = [f"{self.classifier or self.name}{ending}" for ending in _CLASSIFIERS]
        return SCALAR if architecture in names else None


def _layers_that_see_all(keys: Keys, kinds: object, window: object, layers: int) -> dict[str, int]:
    """Return window and period from a list of the layers' kinds."""
    if not isinstance(kinds, Sequence) or len(kinds) != layers or not set(kinds) <= {LOCAL, GLOBAL}:
        keys.problem("layer_types", f"must list {LOCAL} or {GLOBAL} for each of the {layers} layers")
        return {}
    if window is None or LOCAL not in kinds:
        return {}
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        keys.problem("sliding_window", f"is {window!r}, expected a number of positions")
        return {}
    if GLOBAL not in kinds:
        return {"sliding_window": window}
    every = kinds.index(GLOBAL) + 1
    if any((kind == GLOBAL) != (i % every == 0) for i, kind in enumerate(kinds, 1)):
        keys.problem(
            "layer_types", "its layers of full attention do not come at one distance from the first on"
        )
    return {"sliding_window": window, "global_every": every}


def _read_silu(keys: Keys) -> None:
    keys.expect("hidden_act", "silu", ("silu", "swish"), "supported here: silu")


def _no_output_bias(keys: Keys) -> None:
    keys.expect(
        "attention_bias", False, (False,), "it puts a bias on the output projection too, not supported"
    )


def _read_llama(keys: Keys, head_width: int, layers: int) -> dict[str, Any]:
    _read_silu(keys)
    _no_output_bias(keys)
    keys.expect("mlp_bias", False, (False,), "biases of the MLP are not supported")
    return {}


def _read_mistral(keys: Keys, head_width: int, layers: int) -> dict[str, Any]:
    _read_silu(keys)
    window = keys.take("sliding_window", 4096)
    return _layers_that_see_all(keys, [LOCAL] * layers, window, layers)


def _read_qwen(keys: Keys, head_width: int, layers: int) -> dict[str, Any]:
    """Read what Qwen2 and Qwen3 share: the last layers may see a window."""
    _read_silu(keys)
    used, window = keys.flag("use_sliding_window", False), keys.take("sliding_window", 4096)
    first = keys.take("max_window_layers", 28)
    kinds = keys.take("layer_types", None)
    if kinds is None:
        kinds = [LOCAL if isinstance(first, int) and i >= first else GLOBAL for i in range(layers)]
    return _layers_that_see_all(keys, kinds, window if used else None, layers)


def _read_qwen2(keys: Keys, head_width: int, layers: int) -> dict[str, Any]:
    return {"attention_bias": True, **_read_qwen(keys, head_width, layers)}


def _read_qwen3(keys: Keys, head_width: int, layers: int) -> dict[str, Any]:
    _no_output_bias(keys)
    return {"query_key_norm": True, **_read_qwen(keys, head_width, layers)}


def _read_qwen3_moe(keys: Keys, head_width: int, layers: int) -> dict[str, Any]:
    _read_silu(keys)
    _no_output_bias(keys)
    keys.expect("use_sliding_window", False, (False,), "windows are not supported in this family")
    keys.take("sliding_window", None)
    keys.take("max_window_layers", None)
    keys.expect("mlp_only_layers", [], ([], None), "every layer must have experts")
    keys.expect("decoder_sparse_step", 1, (1,), "every layer must have experts")
    experts = keys.size("num_experts", default=keys.size("num_local_experts", default=128))
    return {
        "query_key_norm": True,
        "mlp_width": keys.size("moe_intermediate_size", default=768),
        "experts": experts,
        "experts_per_token": keys.size("num_experts_per_tok", default=8),
        "normalize_routing": keys.flag("norm_topk_prob", False),
    }


def _read_gemma(keys: Keys, head_width: int, layers: int, every: int) -> dict[str, Any]:
    """Read what Gemma 2 and 3 share; each `every`-th layer sees all where no list says it."""
    gelu = ("gelu_pytorch_tanh", "gelu_tanh")
    keys.expect("hidden_activation", gelu[0], (*gelu, None), "supported here: gelu_pytorch_tanh")
    keys.take("hidden_act", None)  # superseded by hidden_activation, and wrong in old files
    keys.take("sliding_window_size", None)  # a copy of sliding_window in old files, read by nobody
    _no_output_bias(keys)
    keys.expect("use_bidirectional_attention", False, (False, None), "attention is causal")
    kinds = keys.take("layer_types", None)
    if kinds is None:
        kinds = [GLOBAL if i % every == 0 else LOCAL for i in range(1, layers + 1)]
    scale = keys.number("query_pre_attn_scalar", 256)
    return {
        "norm_offset": True,
        "post_norms": True,
        "activation": "gelu_tanh",
        "embedding_scale": True,
        "query_scale": 0.0 if scale == head_width else scale,
        **_layers_that_see_all(keys, kinds, keys.take("sliding_window", 4096), layers),
    }


def _softcap(keys: Keys, key: str, default: float) -> float:
    value = keys.take(key, default)
    return 0.0 if value is None else keys.as_number(key, value)


def _read_gemma2(keys: Keys, head_width: int, layers: int) -> dict[str, Any]:
    return {
        **_read_gemma(keys, head_width, layers, 2),
        "attention_softcap": _softcap(keys, "attn_logit_softcapping", 50.0),
        "logit_softcap": _softcap(keys, "final_logit_softcapping", 30.0),
    }


def _read_gemma3(keys: Keys, head_width: int, layers: int) -> dict[str, Any]:
    every = keys.size("sliding_window_pattern", default=6)
    return {
        **_read_gemma(keys, head_width, layers, every),
        "query_key_norm": True,
        "attention_softcap": _softcap(keys, "attn_logit_softcapping", 0.0),
        "logit_softcap": _softcap(keys, "final_logit_softcapping", 0.0),
    }


def _kinds(decoder: DecoderConfig) -> list[str]:
    every = decoder.global_every
    sees_all = [
        decoder.sliding_window == 0 or (every > 0 and i % every == 0) for i in range(1, decoder.layers + 1)
    ]
    return [GLOBAL if all_of_it else LOCAL for all_of_it in sees_all]


def _write_llama(decoder: DecoderConfig) -> dict[str, Any]:
    return {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def _window(decoder: DecoderConfig) -> int | None:
    return decoder.sliding_window if decoder.sliding_window > 0 else None


def _write_mistral(decoder: DecoderConfig) -> dict[str, Any]:
    return {"hidden_act": "silu", "sliding_window": _window(decoder)}


def _write_qwen(decoder: DecoderConfig) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "use_sliding_window": decoder.sliding_window > 0,
        "sliding_window": _window(decoder),
        "max_window_layers": decoder.layers if decoder.sliding_window == 0 else 0,
        "layer_types": _kinds(decoder),
    }


def _write_qwen3(decoder: DecoderConfig) -> dict[str, Any]:
    return {"attention_bias": False, **_write_qwen(decoder)}


def _write_qwen3_moe(decoder: DecoderConfig) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
        "num_experts": max(decoder.experts, 1),
        "num_experts_per_tok": max(decoder.experts_per_token, 1),
        "moe_intermediate_size": decoder.mlp_width,
        "norm_topk_prob": decoder.normalize_routing,
    }


def _write_gemma(decoder: DecoderConfig) -> dict[str, Any]:
    def cap(number: float) -> float | None:
        return number if number > 0 else None

    scale = decoder.query_scale if decoder.query_scale > 0 else float(decoder.head_width)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": int(scale) if scale.is_integer() else scale,  # transformers: a whole number
        "attn_logit_softcapping": cap(decoder.attention_softcap),
        "final_logit_softcapping": cap(decoder.logit_softcap),
        "sliding_window": _window(decoder),
        "layer_types": _kinds(decoder),
    }


def _write_gemma3(decoder: DecoderConfig) -> dict[str, Any]:
    # A pattern longer than the model is how versions before `layer_types` are told that no layer sees all.
    every = decoder.global_every if decoder.global_every > 0 else decoder.layers + 1
    local = {"rope_local_base_freq": decoder.local_rope_theta} if decoder.local_rope_theta > 0 else {}
    return {**_write_gemma(decoder), "sliding_window_pattern": every, **local}


FAMILIES = (
    Family("Llama", "llama", _read_llama, _write_llama),
    Family("Mistral", "mistral", _read_mistral, _write_mistral),
    Family("Qwen2", "qwen2", _read_qwen2, _write_qwen),
    Family("Qwen3", "qwen3", _read_qwen3, _write_qwen3, head_width=128),
    Family("Qwen3Moe", "qwen3_moe", _read_qwen3_moe, _write_qwen3_moe),
    Family("Gemma2", "gemma2", _read_gemma2, _write_gemma, tied=True, head_width=256),
    Family(
        "Gemma3",
        "gemma3_text",
        _read_gemma3,
        _write_gemma3,
        tied=True,
        rope_theta=1e6,
        head_width=256,
        local_rope=True,
        classifier="Gemma3Text",
    ),
)
"""In the order in which a decoder is given to the first that computes it."""
