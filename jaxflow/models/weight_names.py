"""Which tensors of a Hugging Face checkpoint a decoder's weights are, and how one is turned into the other.

A weight of jaxflow stacks the tensors of all layers (and experts), turned so that the contracted dimension comes
first and heads are a dimension of their own; along vocabulary or heads it may be longer than the tensor, by zeros.
Everything here is a description: no array is held and no file opened.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np

from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.families import SCALAR, TOKENS

EMBEDDING = "model.embed_tokens.weight"
TOKEN_HEAD = "lm_head.weight"
SCALAR_HEAD = "score.weight"
SCALAR_HEAD_BIAS = "score.bias"  # some classes have one; a head here has none
# Buffers that old files hold beside weights: they follow from the config.
DERIVED_BUFFER = ".rotary_emb.inv_freq"


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight of jaxflow and the tensors that it is made of."""

    path: tuple[str, ...]  # in the tree of weights
    template: str  # of the tensors' names, with {layer} and {expert}
    stack: tuple[int, ...]  # leading dimensions over which tensors are stacked: (), (L,) or (L, E)
    split: tuple[int, ...]  # a tensor's shape once the dimensions that it joins are apart
    tensor_shape: tuple[int, ...]  # a tensor's shape in the checkpoint
    order: tuple[int, ...]  # of the split dimensions in the weight
    padded: int | None = None  # dimension of the weight, behind the stack, that may be longer than the tensor
    places: tuple[int, ...] = ()  # along it, where each entry comes from; -1: a zero

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the weight's shape."""
        own = [self.split[axis] for axis in self.order]
        if self.padded is not None:
            own[self.padded] = len(self.places)
        return (*self.stack, *own)

    def name(self, index: tuple[int, ...]) -> str:
        """Return the name of the tensor at this place in the stack."""
        return self.template.format(**dict(zip(("layer", "expert"), index, strict=False)))

    def tensors(self) -> Iterator[tuple[tuple[int, ...], str]]:
        """Yield each tensor's index in the stack and its name."""
        return ((index, self.name(index)) for index in itertools.product(*map(range, self.stack)))

    def cut(self, tensor: np.ndarray, index: tuple[slice, ...], out: np.ndarray) -> int:
        """Write a slice of this weight (its dimensions behind the stack) into `out`, which holds zeros.

        Returns the bytes that were read of the tensor, given in the checkpoint's shape.
        """
        turned = tensor.reshape(self.split).transpose(self.order)
        if self.padded is None:
            read = turned[index]
            out[...] = read
            return read.nbytes
        places = np.asarray(self.places[index[self.padded]])
        real = np.flatnonzero(places >= 0)
        if real.size == 0:
            return 0
        picked = places[real]
        # Neighbours are read as one piece, which for the vocabulary they always are.
        together = picked[-1] - picked[0] + 1 == picked.size
        chosen = slice(int(picked[0]), int(picked[-1]) + 1) if together else picked
        before = (slice(None),) * self.padded
        read = turned[(*index[: self.padded], chosen, *index[self.padded + 1 :])]
        out[(*before, real)] = read
        return read.nbytes

    def restore(self, own: np.ndarray) -> np.ndarray:
        """Return a tensor as the checkpoint has it from one entry of the stack; padding is left out."""
        if self.padded is not None:
            places = np.asarray(self.places)
            if places.size != self.split[self.order[self.padded]]:
                own = np.take(own, np.flatnonzero(places >= 0), axis=self.padded)
        return own.transpose(np.argsort(self.order)).reshape(self.tensor_shape)


def weights_of(decoder: DecoderConfig, head: str) -> list[Weight]:
    """List the weights of a decoder that ends in this head, in the order in which checkpoints are written."""
    weights = [_table(decoder, ("backbone", "embedding"), EMBEDDING, (0, 1)), *_layers(decoder)]
    weights.append(_plain(("backbone", "final_norm", "scale"), "model.norm.weight", (), decoder.width))
    if head == TOKENS and not decoder.tied_embeddings:
        weights.append(_table(decoder, ("head", "matrix"), TOKEN_HEAD, (1, 0)))
    if head == SCALAR:
        shape = (1, decoder.width)
        weights.append(Weight(("head", "weight"), SCALAR_HEAD, (), (decoder.width,), shape, (0,)))
    return weights


def parameter_count(decoder: DecoderConfig, head: str) -> int:
    """Count the numbers that a checkpoint holds: padding is none of them."""
    return sum(
        math.prod(weight.stack) * math.prod(weight.tensor_shape) for weight in weights_of(decoder, head)
    )


def _plain(path: tuple[str, ...], template: str, stack: tuple[int, ...], *shape: int) -> Weight:
    return Weight(path, template, stack, shape, shape, tuple(range(len(shape))))


def _table(decoder: DecoderConfig, path: tuple[str, ...], name: str, order: tuple[int, int]) -> Weight:
    real, padded = decoder.vocabulary_size, decoder.padded_vocabulary_size
    places = (*range(real), *(-1,) * (padded - real))
    shape = (real, decoder.width)
    return Weight(path, name, (), shape, shape, order, order.index(0), places)


def _head_places(decoder: DecoderConfig) -> tuple[int, ...]:
    """Return, for each query head and each padding head behind every group, which head of the checkpoint it is."""
    group = decoder.heads // decoder.kv_heads
    padding = (-1,) * decoder.head_padding
    groups = ((*range(k * group, (k + 1) * group), *padding) for k in range(decoder.kv_heads))
    return tuple(itertools.chain.from_iterable(groups))


def _layers(decoder: DecoderConfig) -> Iterator[Weight]:
    stack, width = (decoder.layers,), decoder.width

    def norm(name: str, of: str) -> Weight:
        path = ("backbone", "layers", name, "scale")
        return _plain(path, f"model.layers.{{layer}}.{of}.weight", stack, width)

    yield norm("attention_norm", "input_layernorm")
    yield from _attention(decoder, stack)
    if decoder.post_norms:
        yield norm("attention_post_norm", "post_attention_layernorm")
        yield norm("mlp_norm", "pre_feedforward_layernorm")
    else:
        yield norm("mlp_norm", "post_attention_layernorm")
    yield from _mlp(decoder, stack)
    if decoder.post_norms:
        yield norm("mlp_post_norm", "post_feedforward_layernorm")


def _attention(decoder: DecoderConfig, stack: tuple[int, ...]) -> Iterator[Weight]:
    d, h = decoder.width, decoder.head_width
    query_heads = _head_places(decoder)
    own = {"query": ("q", decoder.heads), "key": ("k", decoder.kv_heads), "value": ("v", decoder.kv_heads)}
    for name, (letter, heads) in own.items():
        template = f"model.layers.{{layer}}.self_attn.{letter}_proj"
        path = ("backbone", "layers", "attention")
        padding = {"padded": 1, "places": query_heads} if name == "query" else {}
        yield Weight(
            (*path, name), f"{template}.weight", stack, (heads, h, d), (heads * h, d), (2, 0, 1), **padding
        )
        if decoder.attention_bias:
            padding = {"padded": 0, "places": query_heads} if name == "query" else {}
            yield Weight(
                (*path, f"{name}_bias"),
                f"{template}.bias",
                stack,
                (heads, h),
                (heads * h,),
                (0, 1),
                **padding,
            )
        if decoder.query_key_norm and name != "value":
            template = f"model.layers.{{layer}}.self_attn.{letter}_norm.weight"
            yield _plain((*path, f"{name}_norm", "scale"), template, stack, h)
    yield Weight(
        ("backbone", "layers", "attention", "output"),
        "model.layers.{layer}.self_attn.o_proj.weight",
        stack,
        (d, decoder.heads, h),
        (d, decoder.heads * h),
        (1, 2, 0),
        padded=0,
        places=query_heads,
    )


def _mlp(decoder: DecoderConfig, stack: tuple[int, ...]) -> Iterator[Weight]:
    d, f = decoder.width, decoder.mlp_width
    path, template = ("backbone", "layers", "mlp"), "model.layers.{layer}.mlp"
    if decoder.experts > 0:
        shape = (decoder.experts, d)
        yield Weight((*path, "router"), f"{template}.gate.weight", stack, shape, shape, (1, 0))
        stack, template = (*stack, decoder.experts), f"{template}.experts.{{expert}}"
    for name, shape in (("gate", (f, d)), ("up", (f, d)), ("down", (d, f))):
        yield Weight((*path, name), f"{template}.{name}_proj.weight", stack, shape, shape, (1, 0))
