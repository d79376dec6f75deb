"""The exception tree. Every message says what, what was expected, what came, and how to mend it.

OneReelError            anything a user can act on
 +- ConfigError         a setting or argument is wrong                      exit 2
 +- ShapeError          a tensor or a size does not fit                     exit 2
 +- CheckpointError     weights or their config are wrong                   exit 3
 +- MediaError          an image or video file cannot be read or written    exit 3
 +- BackendUnavailable  an optional package or device is missing            exit 4
 +- OutOfMemory         memory or disk does not suffice                     exit 4
"""

from __future__ import annotations


class OneReelError(Exception):
    """Base of all errors that a user can act on.

    Args:
        what: the thing that is wrong, such as an argument's name or a path.
        expected: what would have been right.
        got: what came instead.
        hint: how to mend it.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        got: object | None = None,
        hint: str | None = None,
    ) -> None:
        text = what
        if expected is not None:
            text += f": expected {expected}"
        if got is not None:
            text += f"{',' if expected is not None else ':'} got {got}"
        if hint is not None:
            text += f". hint: {hint}"
        super().__init__(text)
        self.hint = hint


class ConfigError(OneReelError, ValueError):
    """A setting or an argument is wrong."""

    exit_code = 2


class ShapeError(OneReelError, ValueError):
    """A tensor's shape or a size does not fit."""

    exit_code = 2


class CheckpointError(OneReelError):
    """Weights, or the config beside them, are missing, damaged or do not fit."""

    exit_code = 3


class MediaError(OneReelError):
    """An image or video file cannot be read or written."""

    exit_code = 3


class BackendUnavailable(OneReelError):
    """An optional package or a device is missing."""

    exit_code = 4


class OutOfMemory(OneReelError):
    """Memory or disk space does not suffice."""

    exit_code = 4
