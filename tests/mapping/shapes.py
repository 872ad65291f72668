"""Decoders and loads that the mapping's tests share."""

from jaxflow.mapping.load import RoleLoad, Workload
from jaxflow.mapping.model_size import model_size
from jaxflow.models.decoder_config import DecoderConfig

TINY = DecoderConfig(
    vocabulary_size=100, width=64, layers=4, heads=8, kv_heads=4, head_width=16, mlp_width=96
)
LLAMA_7B = DecoderConfig(32000, 4096, 32, 32, 32, 128, 11008)
LLAMA_13B = DecoderConfig(32000, 5120, 40, 40, 40, 128, 13824)
LLAMA_70B = DecoderConfig(32000, 8192, 80, 64, 8, 128, 28672)


def work(sequences=1024, prompt=1024, response=1024, most_rows=0) -> Workload:
    """Return the workload of the paper's evaluation, or another."""
    return Workload(sequences, prompt, response, 16384, True, most_rows)


def actor(decoder=TINY, minibatch=128, updates=8) -> RoleLoad:
    """Return the load of a policy that scores once."""
    return RoleLoad("actor", model_size(decoder, True), True, 1, 1, updates, minibatch, 16384)


def critic(decoder=TINY, minibatch=128, updates=8) -> RoleLoad:
    """Return the load of a value model."""
    return RoleLoad("critic", model_size(decoder, False), True, 0, 1, updates, minibatch, 16384)


def frozen(role="reference", decoder=TINY) -> RoleLoad:
    """Return the load of a model that scores once and never learns."""
    return RoleLoad(role, model_size(decoder, role == "reference"), False, 0, 1, 0, 0, 16384)
