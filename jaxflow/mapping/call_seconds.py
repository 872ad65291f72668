"""Seconds of a role's calls, whatever the devices: real ones (`stages`), or such as a machine's cores simulate."""

from __future__ import annotations

from jaxflow.engine.layout_rules import Parallelism
from jaxflow.mapping import simulated_calls, stages
from jaxflow.mapping.cost import Seconds
from jaxflow.mapping.load import RoleLoad
from jaxflow.mapping.stages import CallLayouts, Setting


def score_seconds(layouts: CallLayouts, setting: Setting) -> Seconds:
    """Return one forward pass over the step's sequences, and what moves for each part of it."""
    taken = _terms(setting).score_seconds(layouts.load, layouts.scoring, setting)
    if layouts.moves:
        switch = stages.scoring_switch_seconds(layouts.load, layouts.pool, setting)
        taken += switch.times(setting.workload.parts)
    return taken


def train_seconds(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return all updates of a step."""
    return _terms(setting).train_seconds(load, layout, setting)


def generate_seconds(load: RoleLoad, layout: Parallelism, setting: Setting, rows_at_once: int) -> Seconds:
    """Return all responses of a step, `rows_at_once` of each replica running at a time."""
    return _terms(setting).generate_seconds(load, layout, setting, rows_at_once)


def transition_seconds(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return the switch of the policy's weights to the generation layout."""
    return _terms(setting).transition_seconds(load, layout, setting)


def controller_seconds(layout: Parallelism, setting: Setting) -> Seconds:
    """Return what the controller adds to one call: a constant, each process of the pool, each row of the step."""
    engine, processes = setting.engine, max(1, layout.devices // setting.devices_per_host)
    rows = engine.call_row_seconds * setting.workload.sequences
    return Seconds(host=engine.call_seconds + processes * engine.call_process_seconds + rows)


def _terms(setting: Setting):
    return simulated_calls if setting.device.simulated > 0 else stages
