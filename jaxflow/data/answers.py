"""Wrong answers to questions whose right one is known: near misses, for a verifier to tell apart.

Knows token ids and a generator of random numbers. Does not know text, rows or batches.
"""

from __future__ import annotations

import dataclasses

import numpy as np

Answer = tuple[int, ...]

_MISTAKES = ("another", "replaced", "swapped", "shuffled", "dropped", "repeated", "unfinished")


@dataclasses.dataclass(frozen=True)
class WrongAnswers:
    """Draws answers with one mistake."""

    answers: tuple[Answer, ...]  # right ones of all questions, at least one token each, without the end token
    alphabet: tuple[int, ...]  # tokens that may be written in another's place
    end: int  # token that ends an answer

    def draw(self, right: Answer, generator: np.random.Generator) -> Answer:
        """Draw an answer that is not `right` followed by the end token.

        The mistake is one of: the answer to another question; one token replaced; two neighbours swapped; all
        tokens in another order; one token dropped; one repeated; the answer broken off, be it after its last
        token, without an end. All but the last end with the end token.
        """
        while True:
            wrong = self._attempt(right, generator)
            if wrong != (*right, self.end):
                return wrong

    def _attempt(self, right: Answer, generator: np.random.Generator) -> Answer:
        """Make a mistake that may turn out to be none: the same token, two equal neighbours, a same answer."""
        mistake = _MISTAKES[generator.integers(len(_MISTAKES))]
        at = int(generator.integers(len(right)))
        before, here, after = right[:at], right[at : at + 1], right[at + 1 :]
        match mistake:
            case "another":
                answer = self.answers[generator.integers(len(self.answers))]
            case "replaced":
                answer = (*before, self.alphabet[generator.integers(len(self.alphabet))], *after)
            case "swapped":
                answer = before + after[:1] + here + after[1:]
            case "shuffled":
                answer = tuple(right[i] for i in generator.permutation(len(right)))
            case "dropped":
                answer = before + after
            case "repeated":
                answer = before + here + here + after
            case _:
                return before + here
        return (*answer, self.end)
