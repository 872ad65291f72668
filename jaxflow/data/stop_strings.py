"""Stop strings as a table over tokens: a device then knows, from the tokens alone, when one is complete.

Knows bytes and no device; the tokens' bytes come from `token_texts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxflow.data.token_texts import TokenTexts


def stop_transitions(strings: Sequence[str], texts: TokenTexts) -> Int[np.ndarray, "Q V"]:
    """Return where each token leads from each state of the automaton that looks for the strings.

    Q = 2 + the different proper beginnings of the strings, in bytes: state 0 is a response that has said nothing,
    state 1 one that ends in no beginning, each other state the longest beginning that the text ends in (Aho and
    Corasick, 1975). Entry [q, v] is q', where token v leads from q, or ~q' if a string was completed within v.
    int16 where Q allows.
    """
    delta, complete = _byte_automaton([string.encode() for string in strings])
    states, vocabulary = len(delta), len(texts.inside)
    from_anywhere = _walk(delta, complete, texts.inside, np.arange(states))
    from_start = _walk(delta, complete, texts.first, np.zeros(1, np.int64))
    # State 0 of the bytes' automaton is state 1 here. What says nothing leaves a response that has said nothing.
    table = np.concatenate([from_start, from_anywhere], axis=1).T
    table = np.where(table < 0, table - 1, table + 1)
    silent = np.array([text == b"" for text in texts.inside])
    table[0, silent] = 0
    assert table.shape == (states + 1, vocabulary)
    return table.astype(np.int16 if states < np.iinfo(np.int16).max else np.int32)


def _byte_automaton(strings: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return, per state and byte, the next state [Q, 256] and whether a string is complete there [Q, 256].

    A string that is complete leaves the state of the longest proper beginning it ends in: states are proper
    beginnings alone.
    """
    beginnings = sorted(
        {string[:n] for string in strings for n in range(len(string))}, key=lambda b: (len(b), b)
    )
    states = {beginning: index for index, beginning in enumerate(beginnings)}
    delta = np.zeros((len(states), 256), np.int64)
    complete = np.zeros((len(states), 256), bool)
    for beginning, state in states.items():
        for byte in range(256):
            text = beginning + bytes([byte])
            delta[state, byte] = next(states[text[i:]] for i in range(len(text) + 1) if text[i:] in states)
            complete[state, byte] = text.endswith(tuple(strings))
    return delta, complete


def _walk(
    delta: np.ndarray, complete: np.ndarray, texts: Sequence[bytes], starts: Int[np.ndarray, "Q"]
) -> Int[np.ndarray, "V Q"]:
    """Return the state behind each token from each start, inverted (~) where a string was completed on the way."""
    lengths = np.array([len(text) for text in texts])
    states = np.tile(starts, (len(texts), 1))
    stopped = np.zeros(states.shape, bool)
    bytes_in = np.zeros((len(texts), max(1, lengths.max(initial=0))), np.uint8)
    for row, text in enumerate(texts):
        bytes_in[row, : len(text)] = np.frombuffer(text, np.uint8)
    for place in range(lengths.max(initial=0)):
        rows = np.flatnonzero(lengths > place)
        byte = bytes_in[rows, place][:, None]
        stopped[rows] |= complete[states[rows], byte]
        states[rows] = delta[states[rows], byte]
    return np.where(stopped, ~states, states)
