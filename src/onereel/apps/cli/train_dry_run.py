"""`onereel train RECIPE --dry-run`: how large a run is and how long it takes, measured on steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onereel.training.engine import Trainer, TrainerConfig

_MIB = 2**20
_LATER = 10_000  # a step of runs that the clock ends


def measure_run(trainer: Trainer) -> dict[str, Any]:
    """Take two steps at the run's beginning and two in its middle, and say what they cost.

    Args:
        trainer: it trains in memory only, and is of no use afterwards.

    Returns:
        JSON values: bytes that stay (weights, gradients, optimizers, averages), per measured place
        the seconds of a step and what it keeps for the backward pass, and estimates for the run.
    """
    from onereel.training.memory import measure_steps, memory_errors, state_bytes

    averages = [ema.shadow for ema in trainer.ema.values()]
    sizes = state_bytes(trainer.method, averages)
    middle = trainer.config.max_steps // 2 if trainer.config.max_steps else _LATER
    with memory_errors():
        steps = measure_steps(trainer, sorted({0, middle}))
    activations = max(step["activations_mib"] for step in steps)
    return {
        "processes": trainer.team.count,
        "memory_mib": {
            **{name: round(size / _MIB, 1) for name, size in sizes.items()},
            "activations": activations,
            "total": round(sum(sizes.values()) / _MIB + activations, 1),
        },
        "steps": steps,
        **_duration(trainer.config, steps),
    }


def _duration(config: TrainerConfig, steps: list[dict[str, float]]) -> dict[str, float]:
    """Estimate the run's steps and minutes from the mean of the measured places."""
    seconds = sum(step["seconds"] for step in steps) / len(steps)
    limits = []
    if config.max_steps is not None:
        limits.append(config.max_steps * seconds)
    if config.max_minutes is not None:
        limits.append(config.max_minutes * 60)
    total = min(limits)
    return {
        "estimated_seconds_per_step": round(seconds, 3),
        "estimated_steps": round(total / max(seconds, 1e-9)),
        "estimated_minutes": round(total / 60, 2),
    }
