"""Supervised fine-tuning. Knows a student by what it does, nothing else."""

from __future__ import annotations

from jaxflow.dataflow.roles import Student
from jaxflow.types import Demonstrations, Future, Metrics


def sft(student: Student, demonstrations: Demonstrations | Future[Demonstrations]) -> list[Future[Metrics]]:
    """Run one step: imitate the demonstrated responses."""
    return [student.imitate(demonstrations)]
