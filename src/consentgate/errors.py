"""Every error that reaches a person, and the exit code that belongs to it.

A message says what happened, where, and what to do about it. It never holds a payload or a raw
subject id.
"""

from typing import ClassVar

EXIT_FOUND = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69
EXIT_INTERNAL = 70
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130


class ConsentgateError(Exception):
    """Base of the errors that end a command with a message instead of a traceback."""

    exit_code: ClassVar[int] = EXIT_INTERNAL


class ConfigError(ConsentgateError):
    """The configuration, the policy or the topics are not what the service needs."""

    exit_code: ClassVar[int] = EXIT_CONFIG


class PolicyError(ConfigError):
    """A policy file that is refused; each problem is `file:line: key: what is wrong`."""


class BrokerUnavailable(ConsentgateError):
    """No broker answered in the time given."""

    exit_code: ClassVar[int] = EXIT_UNAVAILABLE


class Superseded(ConsentgateError):
    """The same command was started a second time, and has taken over."""

    exit_code: ClassVar[int] = EXIT_USAGE


class ClientBroken(ConsentgateError):
    """The Kafka client has stopped working inside; only a new process helps."""


class BrokerError(ConsentgateError):
    """The embedded broker could not be fetched, started or stopped."""


class FixtureError(ConfigError):
    """A fixture line that cannot be read."""


class NoSuchRecord(ConsentgateError):
    """What was asked about is not there."""

    exit_code: ClassVar[int] = EXIT_USAGE
