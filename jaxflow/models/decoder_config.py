"""The numbers that define one decoder. Knows no weights, no mesh, and imports nothing."""

from __future__ import annotations

import dataclasses

# Rows added to the embedding never win: their logits are masked. The multiple is fixed, not the mesh's, so that
# a checkpoint means the same on every mesh.
VOCABULARY_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of one Llama-style decoder and how it computes."""

    vocabulary_size: int = 0  # tokens; 0: taken from the tokenizer
    width: int = 128  # D, the residual stream
    layers: int = 4  # L
    heads: int = 4  # N, query heads
    kv_heads: int = 4  # K, key/value heads; divides `heads`
    head_width: int = 32  # H
    mlp_width: int = 512  # F
    rope_theta: float = 10000.0  # base of the rotary frequencies
    norm_epsilon: float = 1e-5
    tied_embeddings: bool = False  # the output head is the transposed embedding table
    compute_dtype: str = "float32"  # float32 | bfloat16, of activations; master weights stay float32
    remat: bool = (
        True  # recompute each layer from its input in the backward pass; off: keep products with weights
    )

    @property
    def padded_vocabulary_size(self) -> int:
        """Round the vocabulary up so that every tensor-parallel size up to the multiple divides it."""
        return -(-self.vocabulary_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def parameter_count(self) -> int:
        """Count the weights with a token head: L(3DF + 2DH(N + K) + 2D) + D + VD (+ VD untied), V padded."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        layer = 3 * self.width * self.mlp_width + attention + 2 * self.width
        tables = self.padded_vocabulary_size * self.width * (1 if self.tied_embeddings else 2)
        return self.layers * layer + self.width + tables

    def same_backbone(self, other: DecoderConfig) -> bool:
        """Return whether weights below the head fit both: how they compute and end may differ."""
        return self == dataclasses.replace(
            other,
            tied_embeddings=self.tied_embeddings,
            compute_dtype=self.compute_dtype,
            remat=self.remat,
        )
