"""Cutting an update or a unit into pieces that fit the link, and putting them together again.

Unchunked, a large update never arrives on a slow link: the keepalive ends the session first. A piece
carries a CRC, the last one the digest of the whole; a receiver keeps a bitmap and asks for what it lacks.
"""

import zlib
from dataclasses import dataclass, field

from hedgerow.core.errors import PeerError
from hedgerow.core.messages import BlobPart, Chunk, Update, UpdateId
from hedgerow.core.units import digest

PIECE_OVERHEAD_BYTES = 128
"""What a piece costs besides its body: many small pieces are bounded like a few large ones."""

_MAX_WANTED = 8192


def cut(data: bytes, piece_bytes: int) -> list[bytes]:
    """Cut into pieces of at most `piece_bytes`; no data is one empty piece."""
    return [data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes)] or [b""]


def chunk_update(update: Update, encoded: bytes, chunk_bytes: int) -> list[Chunk]:
    """Cut an encoded update into the messages that carry it."""
    pieces = cut(encoded, chunk_bytes)
    last = len(pieces) - 1
    return [
        Chunk(
            id=update.id,
            model=update.model,
            base_version=update.base_version,
            plan_id=update.plan_id,
            index=index,
            count=len(pieces),
            total_bytes=len(encoded),
            crc32=zlib.crc32(piece),
            body=piece,
            digest=digest(encoded) if index == last else "",
        )
        for index, piece in enumerate(pieces)
    ]


def chunk_blob(data: bytes, chunk_bytes: int) -> list[BlobPart]:
    """Cut a unit's bytes into the messages that carry it."""
    pieces = cut(data, chunk_bytes)
    name = digest(data)
    return [
        BlobPart(digest=name, index=index, count=len(pieces), body=piece)
        for index, piece in enumerate(pieces)
    ]


@dataclass(slots=True)
class Pieces:
    """The pieces of one whole that have arrived so far."""

    count: int
    parts: dict[int, bytes] = field(default_factory=dict)
    held_bytes: int = 0

    def put(self, index: int, count: int, body: bytes) -> None:
        """Keep a piece; a repeat changes nothing. Raises PeerError where it contradicts the others."""
        if count != self.count or index >= count:
            raise PeerError(
                "inconsistent", f"piece {index} of {count}, expected one of {self.count}"
            )
        if index not in self.parts:
            self.parts[index] = body
            self.held_bytes += len(body)

    @property
    def missing(self) -> list[int]:
        """The numbers of the pieces that have not arrived."""
        return [index for index in range(self.count) if index not in self.parts]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, without counting what is: that would cost more with each piece."""
        return len(self.parts) == self.count

    def join(self) -> bytes:
        """Return the whole; call it when nothing is missing."""
        return b"".join(self.parts[index] for index in range(self.count))


@dataclass(slots=True)
class _Incoming:
    pieces: Pieces
    total_bytes: int
    touched_us: int
    digest: str = ""


class Reassembler:
    """Puts updates together from chunks, within bounds of bytes and number of updates under way.

    `held_bytes` counts the pieces held now with `PIECE_OVERHEAD_BYTES` for each and never passes
    `max_held_bytes`: the updates that have been quiet longest make room, and `dropped` counts them.
    """

    def __init__(self, max_update_bytes: int, max_held_bytes: int, max_updates: int) -> None:
        self.max_update_bytes = max_update_bytes
        self.max_held_bytes = max_held_bytes
        self.max_updates = max_updates
        self.held_bytes = 0
        self.dropped = 0
        self._incoming: dict[UpdateId, _Incoming] = {}

    def __len__(self) -> int:
        return len(self._incoming)

    def __contains__(self, update_id: UpdateId) -> bool:
        return update_id in self._incoming

    def put(self, chunk: Chunk, now_us: int) -> bytes | None:
        """Take a chunk; return the whole update when it was the last one missing.

        Raises PeerError for a chunk that is damaged, contradicts the others or passes a bound; what had
        arrived of a contradictory update is forgotten.
        """
        if zlib.crc32(chunk.body) != chunk.crc32:
            raise PeerError("checksum", f"chunk {chunk.index} of {chunk.id} is damaged")
        entry = self._entry(chunk, now_us)
        entry.touched_us = now_us
        try:
            self._keep(chunk, entry)
            return self._finish(chunk.id, entry)
        except PeerError:
            self.forget(chunk.id)
            raise

    def _entry(self, chunk: Chunk, now_us: int) -> _Incoming:
        entry = self._incoming.get(chunk.id)
        if entry is not None:
            return entry
        if chunk.total_bytes > self.max_update_bytes or chunk.count > max(1, chunk.total_bytes):
            raise PeerError(
                "too-large", f"update of {chunk.total_bytes} bytes in {chunk.count} chunks"
            )
        if len(self._incoming) >= self.max_updates:
            self._drop_quietest(chunk.id)
        entry = _Incoming(Pieces(chunk.count), chunk.total_bytes, now_us)
        self._incoming[chunk.id] = entry
        return entry

    def _keep(self, chunk: Chunk, entry: _Incoming) -> None:
        announced = (entry.total_bytes, entry.pieces.count)
        if (chunk.total_bytes, chunk.count) != announced or chunk.index >= chunk.count:
            raise PeerError("inconsistent", "chunks disagree about the update's size")
        entry.digest = chunk.digest or entry.digest
        if chunk.index in entry.pieces.parts:
            return
        if entry.pieces.held_bytes + len(chunk.body) > entry.total_bytes:
            raise PeerError("inconsistent", "chunks are longer than the update")
        size_bytes = len(chunk.body) + PIECE_OVERHEAD_BYTES
        while self.held_bytes + size_bytes > self.max_held_bytes:
            self._drop_quietest(chunk.id)
        entry.pieces.put(chunk.index, chunk.count, chunk.body)
        self.held_bytes += size_bytes

    def _drop_quietest(self, keep: UpdateId) -> None:
        """Forget the update that has been quiet longest; raises PeerError when there is none but `keep`."""
        others = self._incoming.keys() - {keep}
        if not others:
            raise PeerError("too-large", "the pieces of this update alone pass the bound")
        self.forget(min(others, key=lambda key: (self._incoming[key].touched_us, key)))
        self.dropped += 1

    def _finish(self, update_id: UpdateId, entry: _Incoming) -> bytes | None:
        if not entry.pieces.complete:
            return None
        whole = entry.pieces.join()
        if len(whole) != entry.total_bytes or digest(whole) != entry.digest:
            raise PeerError("checksum", f"update {update_id} does not match its digest")
        self.forget(update_id)
        return whole

    def forget(self, update_id: UpdateId) -> None:
        """Drop what has arrived of an update, if anything."""
        entry = self._incoming.pop(update_id, None)
        if entry is not None:
            pieces = entry.pieces
            self.held_bytes -= pieces.held_bytes + PIECE_OVERHEAD_BYTES * len(pieces.parts)

    def stalled(self, before_us: int) -> dict[UpdateId, list[int]]:
        """Return what every update lacks that has been quiet since `before_us`.

        Of each update the first 8192 missing pieces are named: as many as one message can ask for.
        """
        return {
            update_id: entry.pieces.missing[:_MAX_WANTED]
            for update_id, entry in self._incoming.items()
            if entry.touched_us < before_us
        }
