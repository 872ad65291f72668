"""The numbers that define one decoder. Knows no weights, no mesh, and imports nothing."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of one decoder and how it computes: Llama's, with the differences of the families declared."""

    vocabulary_size: int = 0  # tokens; 0: taken from the tokenizer
    width: int = 128  # D, the residual stream
    layers: int = 4  # L
    heads: int = 4  # N, query heads
    kv_heads: int = 4  # K, key/value heads; divides `heads`
    head_width: int = 32  # H
    mlp_width: int = 512  # F
    # Rows that the vocabulary's tables are padded to a multiple of; they never win: their logits are masked. Not the
    # mesh's choice: a checkpoint means the same on every mesh. Other than 64 where tensor × pipe does not divide that.
    vocabulary_multiple: int = 64
    rope_theta: float = 10000.0  # base of the rotary frequencies
    norm_epsilon: float = 1e-5
    tied_embeddings: bool = False  # the output head is the transposed embedding table
    compute_dtype: str = "float32"  # float32 | bfloat16, of activations; master weights stay float32
    # Recompute each layer from its input in the backward pass; off: keep products with weights
    remat: bool = True
    attention_bias: bool = False  # of query, key and value projections (Qwen2)
    # RMSNorm of each head of queries and keys before the rotation (Qwen3, Gemma 3)
    query_key_norm: bool = False
    norm_offset: bool = False  # norms scale by 1 + w (Gemma)
    post_norms: bool = False  # a norm also behind attention and behind the MLP (Gemma 2 and 3)
    activation: str = "silu"  # silu | gelu_tanh, of the MLP's gate
    embedding_scale: bool = False  # embeddings times sqrt(width), rounded to the compute dtype (Gemma)
    # Scores are divided by its square root; 0: head_width (Gemma: query_pre_attn_scalar)
    query_scale: float = 0.0
    attention_softcap: float = 0.0  # c: scores s become c·tanh(s/c); 0: off (Gemma 2)
    logit_softcap: float = 0.0  # the same of the final logits; 0: off (Gemma 2)
    sliding_window: int = 0  # positions a local layer sees, its own included; 0: every layer sees all
    # Layer i (from 0) sees all where (i + 1) % this == 0; 0: with a window no layer does
    global_every: int = 0
    local_rope_theta: float = 0.0  # base of the local layers, unscaled; 0: theirs is the global one (Gemma 3)
    # none | linear (positions / rope_factor) | llama3 (low frequencies / rope_factor)
    rope_scaling: str = "none"
    rope_factor: float = 1.0  # times the positions that the frequencies were made for
    # llama3: turns in the original positions, slowed wholly up to here
    rope_low_frequency_factor: float = 1.0
    rope_high_frequency_factor: float = 4.0  # llama3: turns in the original positions, untouched from here on
    rope_original_positions: int = 8192  # llama3: positions before the scaling
    experts: int = 0  # E, of which mlp_width is each one's F; 0: one dense MLP
    experts_per_token: int = 0  # k
    normalize_routing: bool = True  # a token's k probabilities are rescaled to sum to 1 (norm_topk_prob)
    # Query heads of zeros added to each key/value group, so that heads divide over ranks: they stay zero in
    # training and are left out of exports.
    head_padding: int = 0

    @property
    def padded_vocabulary_size(self) -> int:
        """Round the vocabulary up so that every tensor-parallel size that divides the multiple divides it."""
        return -(-self.vocabulary_size // self.vocabulary_multiple) * self.vocabulary_multiple

    @property
    def padded_heads(self) -> int:
        """Return N', the query heads that the weights have: N and those of zeros, the last ones of each group."""
        return self.heads + self.kv_heads * self.head_padding

    @property
    def score_divisor(self) -> float:
        """Return the number by whose square root the scores of queries and keys are divided."""
        return self.query_scale if self.query_scale > 0.0 else float(self.head_width)

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Return for each layer whether it sees its sliding window only."""
        return tuple(
            self.sliding_window > 0 and (self.global_every == 0 or (layer + 1) % self.global_every != 0)
            for layer in range(self.layers)
        )

    @property
    def parameter_count(self) -> int:
        """Count the weights with a token head: L·(attention + MLP + norms) + D + VD (+ VD untied), V padded.

        attention = 2DH(N' + K), + H(N' + 2K) biases, + 2H norms of queries and keys; MLP = 3DF, or 3DFE + DE
        with experts; norms = 2D, or 4D with post norms.
        """
        d, h, n, k = self.width, self.head_width, self.padded_heads, self.kv_heads
        attention = 2 * d * h * (n + k) + (h * (n + 2 * k) if self.attention_bias else 0)
        attention += 2 * h if self.query_key_norm else 0
        mlp = 3 * d * self.mlp_width
        mlp = mlp * self.experts + d * self.experts if self.experts > 0 else mlp
        norms = (4 if self.post_norms else 2) * d
        tables = self.padded_vocabulary_size * d * (1 if self.tied_embeddings else 2)
        return self.layers * (attention + mlp + norms) + d + tables

    def same_backbone(self, other: DecoderConfig) -> bool:
        """Return whether weights below the head fit both and mean the same: how they end may differ."""
        return self == dataclasses.replace(
            other,
            tied_embeddings=self.tied_embeddings,
            logit_softcap=self.logit_softcap,
            compute_dtype=self.compute_dtype,
            remat=self.remat,
        )
