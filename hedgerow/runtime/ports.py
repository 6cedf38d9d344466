"""The ports through which the driver performs effects. Production and simulation differ only here.

Links never block and may lose anything; what must not be lost is offered again by the protocols.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from hedgerow.core.effects import Evaluate, Evaluated, Probe, Probed, Train, Trained

Deliver = Callable[[str, Any], None]
"""How a link hands over what arrives: the peer's name and the message or local input."""


class Link(Protocol):
    """A way to other peers."""

    def send(self, peer: str, message: Any) -> None:
        """Send to one peer."""

    def announce(self, channel: str, message: Any | None) -> None:
        """Replace the channel's last message; None clears it."""

    def follow(self, channel: str) -> None:
        """Receive the channel's last and later messages; "+" in it stands for one name."""

    def unfollow(self, channel: str) -> None:
        """Stop following."""


class Store(Protocol):
    """Durable storage of one tier."""

    def save(self, rows: tuple[Any, ...]) -> Awaitable[None]:
        """Write the rows in one transaction and return when they are on disk; raises StoreError."""


class Compute(Protocol):
    """Where training and evaluation happen; never on the event loop's thread."""

    def train(self, job: Train) -> Awaitable[Trained]:
        """Train; raises ComputeError."""

    def probe(self, job: Probe) -> Awaitable[Probed]:
        """Take gradients without training; raises ComputeError."""

    def evaluate(self, job: Evaluate) -> Awaitable[Evaluated]:
        """Evaluate; raises ComputeError."""


class Recorder(Protocol):
    """Where events are counted and logged."""

    def record(self, event: str, amount: int, fields: Mapping[str, Any]) -> None:
        """Count `amount` of an event and log it with its fields."""


class StoreError(Exception):
    """The store could not make rows durable; nothing of the transaction is written."""


class ComputeError(Exception):
    """A training or evaluation could not be done; the text says why."""


class NoChannels:
    """The part of a `Link` that a tier without channels needs: each raises NotImplementedError."""

    def announce(self, channel: str, message: Any | None) -> None:
        """Raise NotImplementedError."""
        raise NotImplementedError(f"this tier has no channel {channel} for {message}")

    def follow(self, channel: str) -> None:
        """Raise NotImplementedError."""
        raise NotImplementedError(f"this tier has no channel {channel}")

    def unfollow(self, channel: str) -> None:
        """Raise NotImplementedError."""
        raise NotImplementedError(f"this tier has no channel {channel}")
