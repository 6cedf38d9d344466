"""Posts that wait for their answer: each is known by who posted it and by its partial."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

from aggregator.refusal import Refusal
from hedgerow.core.messages import PartialReply

Answer = PartialReply | Refusal


class Pending:
    """The posts under way; `count` is how many requests wait."""

    def __init__(self) -> None:
        self.count = 0
        self._futures: dict[tuple[str, str], list[asyncio.Future[Answer]]] = defaultdict(list)

    def answer(self, gateway: str, reply: Answer) -> bool:
        """Answer every post of a partial by this gateway; False when there is none (any more)."""
        waiting = self._futures.pop((gateway, reply.partial_id), [])
        for future in waiting:
            if not future.done():
                future.set_result(reply)
        return bool(waiting)

    async def wait(
        self, gateway: str, partial_id: str, post: Callable[[], None], timeout_s: float
    ) -> Answer:
        """Call `post` and return what it is answered with. Raises TimeoutError."""
        key = (gateway, partial_id)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._futures[key].append(future)
        self.count += 1
        try:
            post()
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self.count -= 1
            self._forget(key, future)

    def _forget(self, key: tuple[str, str], future: asyncio.Future[Answer]) -> None:
        if key in self._futures:
            self._futures[key].remove(future)
            if not self._futures[key]:
                del self._futures[key]
