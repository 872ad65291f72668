"""Supervised fine-tuning. Knows a student by what it does, nothing else."""

from __future__ import annotations

from jaxflow.dataflow.roles import StudentRoles
from jaxflow.types import Demonstrations, Future, Metrics


def sft(roles: StudentRoles, demonstrations: Future[Demonstrations]) -> list[Future[Metrics]]:
    """Run one step: imitate the demonstrated responses."""
    return [roles.actor.update(demonstrations)]


def sft_held_out(roles: StudentRoles, demonstrations: Future[Demonstrations]) -> list[Future[Metrics]]:
    """Say how well responses that were never imitated are expected."""
    return [roles.actor.measure(demonstrations)]
