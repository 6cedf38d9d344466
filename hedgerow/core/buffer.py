"""A bounded buffer whose books balance: admitted = drained + evicted + held, at any time."""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Buffer(Generic[K, V]):
    """Items by key, in the order of their admission, bounded in number and bytes."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.admitted = self.refused = self.drained = self.evicted = 0
        self._items: dict[K, tuple[V, int]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __getitem__(self, key: K) -> V:
        return self._items[key][0]

    def get(self, key: K) -> V | None:
        """Return a held item, None for one that is not."""
        return self._items[key][0] if key in self._items else None

    def values(self) -> list[V]:
        """Return the held items, oldest first."""
        return [value for value, _ in self._items.values()]

    def admit(self, key: K, value: V, size_bytes: int) -> bool:
        """Hold an item; False, and counted as refused, when the bounds would be passed.

        Raises KeyError for a key that is held already: the caller must know a repeat when it sees one.
        """
        if key in self._items:
            raise KeyError(f"{key} is held already")
        if len(self._items) >= self.max_items or self.held_bytes + size_bytes > self.max_bytes:
            self.refused += 1
            return False
        self._items[key] = (value, size_bytes)
        self.held_bytes += size_bytes
        self.admitted += 1
        return True

    def drain(self, key: K) -> V:
        """Take an item out because it has done its work. Raises KeyError when it is not held."""
        value = self._take(key)
        self.drained += 1
        return value

    def evict(self, key: K) -> V:
        """Take an item out because there is no room or time for it. Raises KeyError when it is not held."""
        value = self._take(key)
        self.evicted += 1
        return value

    def _take(self, key: K) -> V:
        value, size_bytes = self._items.pop(key)
        self.held_bytes -= size_bytes
        return value
