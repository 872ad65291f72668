"""Judging without a file of the user's: each row by a scorer of ours, by one name or by the row's data source.

Knows which scorers need a process of their own. Knows no tokens and no config.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence

from jaxflow.rewards.sandbox import Sandbox
from jaxflow.rewards.sandbox_process import FunctionFile, Limits
from jaxflow.rewards.scorers import KNOWN_SOURCES, LIBRARY_SCORERS, SCORERS, TEXT_SCORERS, scorer_of
from jaxflow.rewards.verdict import Case, Failure, Verdict, described, read_verdict
from jaxflow.types import UserError


class BuiltIn:
    """The built-in scorers. A `Judge`."""

    def __init__(self, scorer: str, limits: Limits):
        """Judge by one scorer, or by that of each row's data source where `scorer` is empty."""
        self._scorer, self._limits = scorer, limits
        self._sandboxes: dict[str, Sandbox] = {}

    def check(self) -> None:
        """Refuse a scorer whose package is not installed."""
        if self._scorer:
            _check_installed(self._scorer, "reward.scorer asks for it")

    def check_sources(self, data_sources: Collection[str]) -> None:
        """Refuse data sources that no scorer is known for, or whose scorer's package is not installed."""
        if self._scorer:
            return
        scorers = {source: scorer_of(source) for source in data_sources}
        unknown = [source for source, scorer in scorers.items() if scorer is None]
        if unknown:
            raise UserError(
                f"no built-in scorer for the data source {', '.join(map(repr, sorted(unknown)))}: set"
                f" reward.function to path.py:function, or reward.scorer to one of {', '.join(SCORERS)}; the known"
                f" data sources are {', '.join(KNOWN_SOURCES)}"
            )
        for source, scorer in sorted(scorers.items()):
            _check_installed(scorer, f"rows of {source!r} are scored with it")

    def close(self) -> None:
        """End the processes of scorers that have some."""
        for sandbox in self._sandboxes.values():
            sandbox.close()

    def judge(self, cases: Sequence[Case]) -> list[Verdict | Failure]:
        """Give one verdict for each case, in their order."""
        by_scorer: dict[str, list[int]] = {}
        for row, case in enumerate(cases):
            by_scorer.setdefault(self._scorer or str(scorer_of(case.data_source)), []).append(row)
        verdicts: dict[int, Verdict | Failure] = {}
        for scorer, rows in by_scorer.items():
            told = self._judge([cases[row] for row in rows], scorer)
            verdicts |= dict(zip(rows, told, strict=True))
        return [verdicts[row] for row in range(len(cases))]

    def _judge(self, cases: Sequence[Case], scorer: str) -> list[Verdict | Failure]:
        if scorer in TEXT_SCORERS:
            return [_score(scorer, case) for case in cases]
        if scorer not in self._sandboxes:
            file, _ = LIBRARY_SCORERS[scorer]
            source = file.read_text(encoding="utf-8")
            function = FunctionFile(file, "compute_score", source, {}, batch=False)
            self._sandboxes[scorer] = Sandbox(function, self._limits)
        return self._sandboxes[scorer].judge(cases)


def _score(scorer: str, case: Case) -> Verdict | Failure:
    try:
        return read_verdict(
            TEXT_SCORERS[scorer](case.data_source, case.solution, case.ground_truth, case.extra_info)
        )
    except (TypeError, ValueError) as error:
        return Failure("error", f"{scorer}: {described(error)}")


def _check_installed(scorer: str, why: str) -> None:
    if scorer not in LIBRARY_SCORERS:
        return
    package = LIBRARY_SCORERS[scorer][1]
    if importlib.util.find_spec(package) is None:
        install = package.replace("_", "-")
        raise UserError(
            f"the scorer {scorer} needs the package {install} ({why}): pip install {install}, or compare text"
            " with reward.scorer = 'math_string'"
        )
