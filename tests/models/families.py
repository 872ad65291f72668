"""One small random model per family, made by transformers' own class, and the same weights in our names."""

import dataclasses
import functools

import numpy as np
import torch
import transformers

from jaxflow.models.decoder_config import DecoderConfig

torch.set_num_threads(1)
VOCABULARY = 60
_SIZES = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
_SIZES |= dict(num_key_value_heads=2, intermediate_size=48, max_position_embeddings=256, rms_norm_eps=1e-5)
_SIZES |= dict(bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=False)
_OURS = DecoderConfig(
    vocabulary_size=VOCABULARY,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=8,
    mlp_width=48,
    remat=False,
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A family's config in transformers' words and in ours."""

    theirs: transformers.PretrainedConfig
    ours: DecoderConfig


def _family(kind, theirs, **ours):
    return Family(kind(**{**_SIZES, **theirs}), dataclasses.replace(_OURS, **ours))


def _rope(kind="default", theta=10000.0, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


_LLAMA3 = dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_GEMMA = dict(tie_word_embeddings=True, query_pre_attn_scalar=10, sliding_window=5)
_OF_GEMMA = dict(
    tied_embeddings=True,
    norm_offset=True,
    post_norms=True,
    activation="gelu_tanh",
    embedding_scale=True,
    query_scale=10.0,
    sliding_window=5,
)
FAMILIES = {
    "llama2": _family(transformers.LlamaConfig, _rope()),
    "llama3": _family(
        transformers.LlamaConfig,
        _rope("llama3", 500.0, **_LLAMA3),
        rope_theta=500.0,
        rope_scaling="llama3",
        rope_factor=4.0,
        rope_original_positions=32,
    ),
    "mistral": _family(transformers.MistralConfig, _rope() | {"sliding_window": 5}, sliding_window=5),
    "qwen2": _family(
        transformers.Qwen2Config,
        _rope() | {"tie_word_embeddings": True},
        attention_bias=True,
        tied_embeddings=True,
    ),
    "qwen3": _family(transformers.Qwen3Config, _rope(), query_key_norm=True),
    "qwen3_moe": _family(
        transformers.Qwen3MoeConfig,
        _rope() | dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True),
        query_key_norm=True,
        experts=6,
        experts_per_token=2,
        mlp_width=24,
    ),
    "gemma2": _family(
        transformers.Gemma2Config,
        _rope() | _GEMMA | dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
        attention_softcap=2.0,
        logit_softcap=3.0,
        global_every=2,
        **_OF_GEMMA,
    ),
    "gemma3": _family(
        transformers.Gemma3TextConfig,
        _GEMMA
        | dict(
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
        query_key_norm=True,
        global_every=2,
        rope_theta=1000.0,
        rope_scaling="linear",
        rope_factor=8.0,
        local_rope_theta=100.0,
        **_OF_GEMMA,
    ),
}


@functools.cache
def torch_model(name):
    """transformers' model of a family, every weight random and none near its trivial value."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        config = FAMILIES[name].theirs
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for key, weight in model.named_parameters():
        spread = 0.4 if weight.ndim == 1 else 1.0 if "embed" in key else 1.5 * weight.shape[-1] ** -0.5
        centre = 1.0 if key.endswith("norm.weight") and not FAMILIES[name].ours.norm_offset else 0.0
        torch.nn.init.normal_(weight, centre, spread)
    return model


def in_our_names(name, read):
    """Our weights (or their gradients) of a family: `read` gives a NumPy array for each of transformers' parameters."""
    config, model = FAMILIES[name].ours, torch_model(name)
    theirs = {key: np.asarray(read(weight)) for key, weight in model.named_parameters()}
    d, h = config.width, config.head_width
    post = "post_feedforward_layernorm" if config.post_norms else None
    mlp_norm = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"

    def stacked(key, shape=None, transpose=True):
        layers = [theirs.pop(f"model.layers.{i}.{key}") for i in range(config.layers)]
        layers = [one.swapaxes(-1, -2) if transpose and one.ndim > 1 else one for one in layers]
        return np.stack([one.reshape(shape) if shape else one for one in layers])

    attention = {
        "query": stacked("self_attn.q_proj.weight", (d, -1, h)),
        "key": stacked("self_attn.k_proj.weight", (d, -1, h)),
        "value": stacked("self_attn.v_proj.weight", (d, -1, h)),
        "output": stacked("self_attn.o_proj.weight", (-1, h, d)),
    }
    if config.attention_bias:
        attention |= {
            f"{name}_bias": stacked(f"self_attn.{name[0]}_proj.bias", (-1, h))
            for name in ("query", "key", "value")
        }
    if config.query_key_norm:
        attention |= {
            f"{name}_norm": {"scale": stacked(f"self_attn.{name[0]}_norm.weight")}
            for name in ("query", "key")
        }
    if config.experts > 0:
        both = stacked("mlp.experts.gate_up_proj")
        gate, up = np.split(both, 2, axis=-1)
        mlp = {"router": stacked("mlp.gate.weight"), "gate": gate, "up": up}
        mlp["down"] = stacked("mlp.experts.down_proj")
    else:
        mlp = {part: stacked(f"mlp.{part}_proj.weight") for part in ("gate", "up", "down")}
    layers = {
        "attention_norm": {"scale": stacked("input_layernorm.weight")},
        "attention": attention,
        "mlp_norm": {"scale": stacked(f"{mlp_norm}.weight")},
        "mlp": mlp,
    }
    if config.post_norms:
        layers["attention_post_norm"] = {"scale": stacked("post_attention_layernorm.weight")}
        layers["mlp_post_norm"] = {"scale": stacked(f"{post}.weight")}
    rows = ((0, config.padded_vocabulary_size - VOCABULARY), (0, 0))
    backbone = {
        "embedding": np.pad(theirs.pop("model.embed_tokens.weight"), rows),
        "layers": layers,
        "final_norm": {"scale": theirs.pop("model.norm.weight")},
    }
    params = {"backbone": backbone}
    if not config.tied_embeddings:
        params["head"] = {"matrix": np.pad(theirs.pop("lm_head.weight"), rows).T}
    assert not theirs, sorted(theirs)
    return params
