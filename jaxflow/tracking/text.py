"""Numbers, durations and names in words, for every line that people read.

Knows no terminal and no file.
"""

from __future__ import annotations

STAGE_WORDS = {
    "gen": "generate",
    "gen_max": "generate greedily",
    "reward": "reward",
    "cost": "cost",
    "old_log_prob": "score with actor",
    "ref": "score with reference",
    "values": "score with critic",
    "cost_values": "score with cost critic",
    "pretraining": "pretraining batch",
    "adv": "advantages",
    "update_critic": "update critic",
    "update_cost_critic": "update cost critic",
    "update_actor": "update actor",
    "update_reward": "update reward model",
    "update_cost": "update cost model",
    "testing": "validate",
    "save_checkpoint": "save checkpoint",
}
"""Stage names as in `timing_s/*`, and what they are called in front of people."""


def stage_words(stage: str) -> str:
    """Names a stage in words; a stage without words keeps its name."""
    return STAGE_WORDS.get(stage, stage)


def figure(value: float) -> str:
    """Writes a number in at most a few characters: three significant digits, thousands in groups."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Writes seconds in the units a person would use: `4.2 s`, `42 s`, `4 min 02 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
