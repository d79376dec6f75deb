"""What the training commands share: settings from the command line, and what is said of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onereel.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from onereel.training.engine import Method, TrainerConfig, TrainResult


def summarise(result: TrainResult, export: Path) -> dict[str, Any]:
    """Say how a run ended.

    Args:
        result: of the trainer.
        export: where the weights are.

    Returns:
        Plain values for JSON.
    """
    return {
        "reason": result.reason,
        "steps": result.progress.step,
        "seconds": round(result.progress.seconds, 1),
        "skipped": result.progress.skipped,
        "checkpoint": str(result.checkpoint),
        "export": str(export),
        **result.metrics,
    }


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` texts.

    Args:
        settings: the texts.

    Returns:
        Texts by key; the recipe gives them their types.

    Raises:
        ConfigError: a text has no `=`.
    """
    pairs: dict[str, Any] = {}
    for text in settings:
        key, sign, value = text.partition("=")
        if not sign:
            raise ConfigError("--set", expected="KEY=VALUE", got=text)
        pairs[key.strip()] = value.strip()
    return pairs


def describe(method: Method, config: TrainerConfig) -> dict[str, Any]:
    """Say how large a run is.

    Args:
        method: what would be trained.
        config: settings of the loop.

    Returns:
        Parameters per network, bytes for weights, gradients, optimizers and averages (without
        activations), and the limits of the run.
    """
    networks = {name: _count(network) for name, network in method.networks.items()}
    trained = sum(size["trained"] for size in networks.values())
    averaged = sum(networks[name]["trained"] for name in method.ema_names)
    total = sum(size["parameters"] for size in networks.values())
    # 4 bytes each: weights, gradients, AdamW's two moments (Muon keeps one), the average.
    estimate = 4 * (total + 3 * trained + (averaged if config.ema_decay > 0 else 0))
    return {
        "networks": networks,
        "memory_mib_without_activations": round(estimate / 2**20, 1),
        "max_steps": config.max_steps,
        "max_minutes": config.max_minutes,
        "schedule": config.schedule,
    }


def _count(network: nn.Module) -> dict[str, int]:
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return {
        "parameters": sum(size for size, _ in sizes),
        "trained": sum(size for size, needed in sizes if needed),
    }
