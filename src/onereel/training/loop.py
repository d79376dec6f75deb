"""What the loop is made of: timers, signals, and states that hold for a while."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from torch import nn

from onereel.core.errors import ConfigError
from onereel.training.checkpoint import random_state, restore_random_state
from onereel.training.method import Method

_ENABLERS: dict[str, dict[str, Any]] = {
    "enable_gradient_checkpointing": {},
    "gradient_checkpointing_enable": {
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
}


class Every:
    """Tells when some minutes have passed.

    Args:
        minutes: how many.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds, self.last = minutes * 60, 0.0

    def is_due(self, now: float) -> bool:
        """Tell whether it is time; `now` is the run's clock in seconds."""
        return now - self.last >= self.seconds

    def reset(self, now: float) -> None:
        """Begin to wait anew."""
        self.last = now


def checkpoint_activations(method: Method) -> None:
    """Let networks compute their activations twice rather than keep them.

    Args:
        method: its networks that can do so, do.

    Raises:
        ConfigError: none can.
    """
    found = False
    for network in method.networks.values():
        # diffusers' name, then transformers'.
        for name, options in _ENABLERS.items():
            enable = getattr(network, name, None)
            if enable is not None:
                enable(**options)
                found = True
                break
    if not found:
        raise ConfigError(
            "activation_checkpointing", expected="false", got="true",
            hint=f"no network of {type(method).__name__} can do without its activations",
        )  # fmt: skip


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let what happens by the clock draw random numbers without a trace in the training's."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for the time of a `with` block."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


@contextlib.contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a call of `stop`; the second acts as usual."""
    previous: dict[int, Any] = {}

    def restore() -> None:
        while previous:
            number, handler = previous.popitem()
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
        stop()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread, where signals cannot be caught
        previous.clear()
    try:
        yield
    finally:
        restore()
