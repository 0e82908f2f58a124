"""Errors that say what to do next, and the exit statuses scripts rely on."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h: no daemon, or a service that does not answer
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h; systemd is told not to restart on it


class SpotdError(Exception):
    """Something went wrong that a person can act on.

    Args:
        message: What happened, in one line, without a full stop.
        hint: What to do about it, in one line; empty when there is nothing to add.
        exit_code: The status a verb ends with when this reaches the edge.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(SpotdError):
    """A configuration that cannot be used; nothing was started and nothing was changed."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=EXIT_CONFIG)


class UnavailableError(SpotdError):
    """No daemon, or a service that does not answer."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=EXIT_UNAVAILABLE)
