"""The error tree: whose fault it is decides what happens next.

A `PeerError` is somebody else's fault: the message is refused with its `reason`, counted, and the
process goes on. A `ConfigError` is the operator's: it is printed and the process does not start. Every
other exception is ours and is raised.
"""

from typing import Literal

Reason = Literal[
    "malformed",
    "too-large",
    "checksum",
    "wrong-source",
    "wrong-model",
    "unknown-plan",
    "unknown-version",
    "future-version",
    "shape",
    "not-finite",
    "norm",
    "stale",
    "inconsistent",
]
"""Why a peer's message was refused; it travels in receipts and labels the counters."""


class HedgerowError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(HedgerowError):
    """The configuration is wrong; the text names the dotted key, the value and the fix."""


class PeerError(HedgerowError):
    """A peer sent something that must not be used.

    `reason` is one word of `Reason`, `detail` a sentence for the log.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail
