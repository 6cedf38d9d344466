"""The answer to a post that cannot be taken now: it is no verdict, and the post may come again."""

from dataclasses import dataclass
from typing import Literal

RefusalReason = Literal["busy", "disk", "new-life"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Local output: the partial was not taken, for a reason that passes; to be told over the link at once.

    busy: too much waits already. disk: it cannot be made durable. new-life: it speaks of versions that are
    lost, and its gateway will soon hear of one that is not.
    """

    partial_id: str
    reason: RefusalReason
    retry_after_s: int
