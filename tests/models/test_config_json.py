"""A config.json is the decoder that transformers would build from it, or is refused by the key that is in the way."""

import dataclasses
import json

import pytest
import transformers

from jaxflow.models.config_json import as_stored, read_config, rewrite_config, write_config
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.families import SCALAR, TOKENS
from jaxflow.models.presets import PRESETS
from jaxflow.types import UserError

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DECODER = DecoderConfig(
    vocabulary_size=50, width=32, layers=4, heads=4, kv_heads=2, head_width=8, mlp_width=64, norm_epsilon=1e-6
)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA = {
    "head_width": 256,
    "tied_embeddings": True,
    "norm_offset": True,
    "post_norms": True,
    "activation": "gelu_tanh",
    "embedding_scale": True,
    "sliding_window": 4096,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}

# (architecture, keys in the dialect of transformers 4, the decoder's fields beside DECODER's)
CASES = {
    "llama": ("LlamaForCausalLM", {"rope_theta": 500.0}, {"rope_theta": 500.0}),
    "llama3": (
        "LlamaForCausalLM",
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {
            "rope_theta": 500000.0,
            "rope_scaling": "llama3",
            "rope_factor": 8.0,
            "rope_original_positions": 64,
        },
    ),
    "linear": (
        "LlamaForCausalLM",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": "linear", "rope_factor": 2.0},
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": 16}, {"sliding_window": 16}),
    "mistral without a window": ("MistralForCausalLM", {"sliding_window": None}, {}),
    "qwen2": (
        "Qwen2ForCausalLM",
        {"tie_word_embeddings": True},
        {"attention_bias": True, "tied_embeddings": True},
    ),
    "qwen2 with a window": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
        {"attention_bias": True, "sliding_window": 16},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}, {"query_key_norm": True, "head_width": 16}),
    "qwen3 moe": (
        "Qwen3MoeForCausalLM",
        {"head_dim": 16, **MOE},
        {"query_key_norm": True, "head_width": 16, "mlp_width": 24, "experts": 4, "experts_per_token": 2},
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"query_pre_attn_scalar": 144},
        {**GEMMA, "query_scale": 144.0, "attention_softcap": 50.0, "logit_softcap": 30.0, "global_every": 2},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {"sliding_window_pattern": 4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {
            **GEMMA,
            "query_key_norm": True,
            "global_every": 4,
            "rope_theta": 1e6,
            "local_rope_theta": 10000.0,
            "rope_scaling": "linear",
            "rope_factor": 8.0,
        },
    ),
}
MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
}


def older(architecture, **keys):
    """A config.json as versions 4 write it."""
    return {"architectures": [architecture], "model_type": MODEL_TYPES[architecture], **SIZES, **keys}


def newer(tree):
    """What transformers 5 makes of it and writes."""
    config = transformers.AutoConfig.for_model(**tree)
    config.architectures = tree["architectures"]
    return json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize("case", CASES)
def test_both_dialects_say_the_same_decoder(case):
    architecture, keys, fields = CASES[case]
    expected = dataclasses.replace(DECODER, **fields)
    tree = older(architecture, **keys)
    assert read_config(tree, "config.json").decoder == expected
    assert "rope_parameters" in newer(tree) and "rope_theta" not in newer(tree)
    assert read_config(newer(tree), "config.json").decoder == expected


@pytest.mark.parametrize("head", [TOKENS, SCALAR])
@pytest.mark.parametrize("case", CASES)
def test_a_written_config_is_the_same_decoder_to_both_dialects(case, head):
    decoder = dataclasses.replace(DECODER, **CASES[case][2])
    held = dataclasses.replace(decoder, compute_dtype="bfloat16", remat=False, head_padding=1)
    tree = write_config(held, head, "bfloat16", 128)
    assert as_stored(held) == decoder
    for dialect in (tree, newer(tree)):
        back = read_config(dialect, "config.json")
        assert (back.decoder, back.head) == (decoder, head)
    assert tree["torch_dtype"] == "bfloat16"
    assert newer(tree)["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("architecture", "keys", "message"),
    [
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"rope_type is 'yarn'"),
        ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "dynamic"}}, r"rope_parameters.rope_type"),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling.factor is missing"),
        ("LlamaForCausalLM", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("LlamaForCausalLM", {"attention_bias": True}, "attention_bias is True"),
        ("LlamaForCausalLM", {"mlp_bias": True}, "mlp_bias is True"),
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("LlamaForCausalLM", {"quantization_config": {}}, "quantization_config is not known"),
        ("LlamaForCausalLM", {"auto_map": {}}, "auto_map is not known"),
        ("LlamaForCausalLM", {"sliding_window": 4}, "sliding_window is not known"),
        ("LlamaForCausalLM", {"hidden_size": None}, "hidden_size is missing"),
        ("LlamaForCausalLM", {"hidden_size": 32.0}, "hidden_size is 32.0, expected a whole number"),
        ("LlamaForCausalLM", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small', expected a number"),
        ("LlamaForCausalLM", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 2}, "layer_types"),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"]}, "layer_types must list"),
        ("Qwen3MoeForCausalLM", {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]"),
        ("Qwen3MoeForCausalLM", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("Gemma2ForCausalLM", {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
    ],
)
def test_a_key_that_would_change_the_computation_is_refused_by_name(architecture, keys, message):
    with pytest.raises(UserError, match=f"(?s)some/config.json: .*{message}"):
        read_config(older(architecture, **keys), "some/config.json")


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], None, [], ["LlamaModel"], "LlamaForCausalLM"])
def test_an_unknown_architecture_is_told_the_known_ones(architectures):
    tree = {**older("LlamaForCausalLM"), "architectures": architectures}
    with pytest.raises(UserError, match=r"config\.json: architectures = .*Qwen3MoeForCausalLM"):
        read_config(tree, "config.json")


@pytest.mark.parametrize("ending", ["ForSequenceClassification", "ForTokenClassification"])
def test_a_classifier_of_one_label_ends_in_one_number(ending):
    tree = {**older("LlamaForCausalLM"), "architectures": [f"Llama{ending}"]}
    assert read_config({**tree, "id2label": {"0": "LABEL_0"}}, "config.json").head == SCALAR
    with pytest.raises(UserError, match="gives 2 labels"):
        read_config(tree, "config.json")


def test_the_text_model_beside_pictures_is_described_by_what_its_class_leaves_out():
    # As the published file of 4B has it.
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    tree = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "vision_config": {}}
    described = read_config(tree, "config.json")
    assert described.decoder == PRESETS["gemma-3-4b"] and described.with_pictures
    assert rewrite_config(tree, "config.json", described.decoder, TOKENS, "float32") is None
    with pytest.raises(UserError, match="text_config is missing"):
        read_config({"architectures": ["Gemma3ForConditionalGeneration"]}, "config.json")


def test_another_config_is_kept_but_for_head_and_dtype():
    tree = older("Qwen2ForCausalLM", eos_token_id=[1, 2], max_position_embeddings=99, torch_dtype="float16")
    decoder = read_config(tree, "config.json").decoder
    scalar = rewrite_config(tree, "config.json", decoder, SCALAR, "bfloat16")
    assert scalar["architectures"] == ["Qwen2ForSequenceClassification"]
    assert (scalar["eos_token_id"], scalar["max_position_embeddings"]) == ([1, 2], 99)
    assert scalar["torch_dtype"] == "bfloat16" and len(scalar["id2label"]) == 1
    back = rewrite_config(scalar, "config.json", decoder, TOKENS, "float16")
    assert back == tree
    other = dataclasses.replace(decoder, rope_theta=7.0)
    assert rewrite_config(tree, "config.json", other, TOKENS, "float16") is None


def test_every_mistake_is_listed_at_once():
    with pytest.raises(UserError) as error:
        read_config(older("LlamaForCausalLM", hidden_act="relu", mlp_bias=True, fancy=1), "config.json")
    assert all(key in str(error.value) for key in ("hidden_act", "mlp_bias", "fancy"))


def test_a_decoder_of_no_family_is_refused_by_what_is_in_the_way():
    with pytest.raises(UserError, match="logit_softcap = 3"):
        write_config(dataclasses.replace(DECODER, logit_softcap=3.0), TOKENS, "float32", 128)
