"""Decoders and loads that the mapping's tests share."""

from jaxflow.mapping.asked import SCORING_ORDER
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
    return _load("actor", decoder, True, 1, updates, minibatch)


def critic(decoder=TINY, minibatch=128, updates=8) -> RoleLoad:
    """Return the load of a value model."""
    return _load("critic", decoder, True, 0, updates, minibatch)


def frozen(role="reference", decoder=TINY) -> RoleLoad:
    """Return the load of a model that scores once and never learns."""
    return _load(role, decoder, False, 0, 0, 0)


def _load(role, decoder, trained, generations, updates, minibatch) -> RoleLoad:
    size = model_size(decoder, role in ("actor", "reference"))
    turn = SCORING_ORDER.index(role)
    return RoleLoad(role, size, trained, generations, 1, updates, minibatch, 16384, turn=turn)
