"""Hugging Face's config.json ⇄ DecoderConfig: which decoder a checkpoint is, and which checkpoint a decoder is.

Plain JSON: no class of transformers is asked and none of a checkpoint's code is run. Every key is accounted for: it
is computed with, it is known to change nothing, or it is refused by name. Both of transformers' dialects are read
(4: `rope_theta`, `rope_scaling`; 5: `rope_parameters`, `layer_types`); the older is written, which both load.
Knows no tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxflow.models.config_keys import Keys
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.families import FAMILIES, GLOBAL, LOCAL, SCALAR, Family
from jaxflow.types import UserError

# Checkpoints that read pictures too; their text model is what is computed.
_WITH_PICTURES = "Gemma3ForConditionalGeneration"
# What their description of the text model may leave out, and what that means.
_OF_TEXT: Mapping[str, object] = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4}
_ONE_LABEL: Mapping[str, object] = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


@dataclasses.dataclass(frozen=True)
class Described:
    """What a config.json says."""

    family: Family
    decoder: DecoderConfig  # compute_dtype and remat at their defaults
    head: str  # TOKENS or SCALAR
    with_pictures: bool  # the decoder is a part of a model that reads pictures too


def read_config(tree: Mapping[str, object], where: str) -> Described:
    """Return the decoder that a config.json describes; `where` is the file, for messages.

    Raises UserError with every key that is missing, wrong, or asks for something else than jaxflow computes.
    """
    with_pictures = tree.get("architectures") == [_WITH_PICTURES]
    keys = Keys(_text_of(tree, where) if with_pictures else tree)
    family, head = _family(keys, where)
    width, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    layers = keys.size("num_hidden_layers")
    head_width = keys.size("head_dim", default=family.head_width or max(width // heads, 1))
    fields: dict[str, Any] = {
        "vocabulary_size": keys.size("vocab_size"),
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": keys.size("num_key_value_heads", default=heads if family.name == "Llama" else None),
        "head_width": head_width,
        "mlp_width": keys.size("intermediate_size"),
        "norm_epsilon": keys.number("rms_norm_eps", 1e-6),
        "tied_embeddings": keys.flag("tie_word_embeddings", family.tied),
        **family.read(keys, head_width, layers),
    }
    fields |= _read_rope(keys, family)
    if head == SCALAR:
        _expect_one_label(keys)
    keys.refuse_the_rest(where)
    return Described(family, DecoderConfig(**fields), head, with_pictures)


def _text_of(tree: Mapping[str, object], where: str) -> dict[str, object]:
    text = tree.get("text_config")
    if not isinstance(text, Mapping):
        raise UserError(f"{where}: text_config is missing; it describes the text model of {_WITH_PICTURES}")
    tied = {"tie_word_embeddings": tree["tie_word_embeddings"]} if "tie_word_embeddings" in tree else {}
    return {**_OF_TEXT, **text, **tied, "architectures": ["Gemma3ForCausalLM"]}


def write_config(decoder: DecoderConfig, head: str, dtype: str, most_positions: int) -> dict[str, object]:
    """Return the config.json of a decoder: the first family that computes the same.

    `dtype` is the weights', `most_positions` the longest sequence it is meant for, which no formula reads. Raises
    UserError where no family computes it.
    """
    wanted = as_stored(decoder)
    nearest: list[str] | None = None
    for family in FAMILIES:
        tree = _written(family, wanted, head, dtype, most_positions)
        try:
            back = read_config(tree, "config.json").decoder
        except UserError:
            continue
        differences = [name for name in vars(wanted) if vars(wanted)[name] != vars(back)[name]]
        if not differences:
            return tree
        if nearest is None or len(differences) < len(nearest):
            nearest = [family.name, *(f"{name} = {vars(wanted)[name]}" for name in differences)]
    raise UserError(
        "no family of transformers that jaxflow writes computes this decoder"
        + (f"; {nearest[0]} comes nearest, but for {', '.join(nearest[1:])}" if nearest is not None else "")
    )


def rewrite_config(
    tree: Mapping[str, object], where: str, decoder: DecoderConfig, head: str, dtype: str
) -> dict[str, object] | None:
    """Return a config.json made from another one of the same decoder, for weights that end in this head.

    All that it says beside the decoder (special tokens, longest sequence) is kept. None where it is another
    decoder's, or more than a decoder's; UserError where it cannot be read.
    """
    described = read_config(tree, where)
    wanted = dataclasses.replace(
        as_stored(decoder),
        tied_embeddings=described.decoder.tied_embeddings if head == SCALAR else decoder.tied_embeddings,
    )
    if described.decoder != wanted or described.with_pictures:
        return None
    ending = _ONE_LABEL if head == SCALAR else {}
    of_head = ("id2label", "label2id", "num_labels", "problem_type", "dtype", "torch_dtype")
    kept = {key: value for key, value in tree.items() if key not in of_head}
    name = described.family.class_name(head)
    return {**kept, "architectures": [name], "torch_dtype": dtype, **ending}


def as_stored(decoder: DecoderConfig) -> DecoderConfig:
    """Return a decoder without what no checkpoint says: how it is computed with, and what a mesh adds to it."""
    unsaid = DecoderConfig()
    return dataclasses.replace(
        decoder,
        compute_dtype=unsaid.compute_dtype,
        remat=unsaid.remat,
        head_padding=unsaid.head_padding,
    )


def _family(keys: Keys, where: str) -> tuple[Family, str]:
    architectures = keys.take("architectures", None)
    keys.take("model_type", None)
    if isinstance(architectures, list) and len(architectures) == 1:
        for family in FAMILIES:
            head = family.head_of(str(architectures[0]))
            if head is not None:
                return family, head
    known = ", ".join(f"{family.name}ForCausalLM" for family in FAMILIES)
    raise UserError(
        f"{where}: architectures = {architectures!r} is not supported; these are: {known}, and their"
        " …ForSequenceClassification and …ForTokenClassification"
    )


def _expect_one_label(keys: Keys) -> None:
    labels = keys.take("id2label", None)
    count = keys.take("num_labels", len(labels) if isinstance(labels, Mapping) else 2)
    if count != 1:
        keys.problem("id2label", f"gives {count} labels; a critic or reward model has one (num_labels = 1)")


def _read_rope(keys: Keys, family: Family) -> dict[str, Any]:
    """Return the fields of rotary positions from either dialect."""
    theta = keys.number("rope_theta", family.rope_theta)
    local = keys.number("rope_local_base_freq", 10000.0) if family.local_rope else 0.0
    older, newer = keys.take("rope_scaling", None), keys.take("rope_parameters", None)
    if not isinstance(newer, Mapping):
        return {"local_rope_theta": local, **_scaling(keys, "rope_scaling", older, theta)}
    if not (family.local_rope and {LOCAL, GLOBAL} & set(newer)):
        return {"local_rope_theta": local, **_scaling(keys, "rope_parameters", newer, theta)}
    fields = _scaling(keys, f"rope_parameters.{GLOBAL}", newer.get(GLOBAL), theta)
    of_local = _scaling(keys, f"rope_parameters.{LOCAL}", newer.get(LOCAL), local)
    if len(of_local) > 1:
        keys.problem(f"rope_parameters.{LOCAL}", "scales the local layers, which are computed unscaled")
    return {"local_rope_theta": of_local["rope_theta"], **fields}


def _scaling(keys: Keys, name: str, stated: object, theta: float) -> dict[str, Any]:
    """Return the fields of one set of rope parameters, its base being `theta` where it does not say."""
    if stated is None:
        return {"rope_theta": theta}
    if not isinstance(stated, Mapping):
        keys.problem(name, f"is {stated!r}, expected an object")
        return {"rope_theta": theta}
    inner = keys.inside(name, stated)
    older = inner.take("type", "default")
    kind = inner.take("rope_type", older)
    fields: dict[str, Any] = {"rope_theta": inner.number("rope_theta", theta)}
    inner.expect("partial_rotary_factor", 1.0, (1.0,), "every head is rotated whole")
    if kind == "linear":
        fields |= {"rope_scaling": "linear", "rope_factor": inner.number("factor")}
    elif kind == "llama3":
        fields |= {
            "rope_scaling": "llama3",
            "rope_factor": inner.number("factor"),
            "rope_low_frequency_factor": inner.number("low_freq_factor"),
            "rope_high_frequency_factor": inner.number("high_freq_factor"),
            "rope_original_positions": inner.size("original_max_position_embeddings"),
        }
    elif kind != "default":
        inner.problem("rope_type", f"is {kind!r}; supported: default, linear, llama3")
        return fields
    inner.note_the_rest()
    return fields


def _written(
    family: Family, decoder: DecoderConfig, head: str, dtype: str, most_positions: int
) -> dict[str, object]:
    scaling: dict[str, object] | None = None
    if decoder.rope_scaling != "none":
        scaling = {"rope_type": decoder.rope_scaling, "factor": decoder.rope_factor}
    if decoder.rope_scaling == "llama3":
        most_positions = max(most_positions, int(decoder.rope_factor * decoder.rope_original_positions))
        scaling |= {
            "low_freq_factor": decoder.rope_low_frequency_factor,
            "high_freq_factor": decoder.rope_high_frequency_factor,
            "original_max_position_embeddings": decoder.rope_original_positions,
        }
    labels = _ONE_LABEL if head == SCALAR else {}
    return {
        "architectures": [family.class_name(head)],
        "model_type": family.model_type,
        "torch_dtype": dtype,
        "vocab_size": decoder.vocabulary_size,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp_width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_width,
        "max_position_embeddings": most_positions,
        "rms_norm_eps": decoder.norm_epsilon,
        "rope_theta": decoder.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": decoder.tied_embeddings,
        "use_cache": True,
        **labels,
        **family.write(decoder),
    }
