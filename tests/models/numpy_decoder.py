"""The decoder again, in NumPy float64 and with loops where they are clearest: the oracle of the models."""

import numpy as np


def hidden_states(params, config, tokens):
    """Return the normed hidden states [B, T, D] of rows without padding."""
    backbone = params["backbone"]
    x = _wide(backbone["embedding"])[tokens]
    for layer in range(config.layers):
        weights = _layer(backbone["layers"], layer)
        x = x + _attention(_norm(x, weights["attention_norm"]["scale"], config), weights["attention"], config)
        x = x + _mlp(_norm(x, weights["mlp_norm"]["scale"], config), weights["mlp"])
    return _norm(x, _wide(backbone["final_norm"]["scale"]), config)


def logits(params, config, tokens):
    """Return logits [B, T, V] of the real vocabulary."""
    table = params["backbone"]["embedding"].T if config.tied_embeddings else params["head"]["matrix"]
    return hidden_states(params, config, tokens) @ _wide(table)[:, : config.vocabulary_size]


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def _wide(x):
    return np.asarray(x, np.float64)


def _layer(stacked, index):
    if isinstance(stacked, dict):
        return {name: _layer(below, index) for name, below in stacked.items()}
    return _wide(stacked[index])


def _norm(x, scale, config):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon) * scale


def _rotate(vector, position, config):
    half = config.head_width // 2
    rotated = np.empty_like(vector)
    for i in range(half):
        angle = position * config.rope_theta ** (-2 * i / config.head_width)
        first, second = vector[..., i], vector[..., i + half]
        rotated[..., i] = first * np.cos(angle) - second * np.sin(angle)
        rotated[..., i + half] = first * np.sin(angle) + second * np.cos(angle)
    return rotated


def _attention(x, weights, config):
    batch, length, width = x.shape
    out = np.zeros((batch, length, width))
    for b in range(batch):
        for head in range(config.heads):
            shared = head // (config.heads // config.kv_heads)
            queries, keys = x[b] @ weights["query"][:, head], x[b] @ weights["key"][:, shared]
            queries = np.stack([_rotate(q, t, config) for t, q in enumerate(queries)])
            keys = np.stack([_rotate(k, t, config) for t, k in enumerate(keys)])
            values = x[b] @ weights["value"][:, shared]
            for t in range(length):
                scores = keys[: t + 1] @ queries[t] / np.sqrt(config.head_width)
                attention = np.exp(scores - scores.max())
                out[b, t] += attention / attention.sum() @ values[: t + 1] @ weights["output"][head]
    return out


def _mlp(x, weights):
    gate = x @ weights["gate"]
    return (gate / (1 + np.exp(-gate)) * (x @ weights["up"])) @ weights["down"]
