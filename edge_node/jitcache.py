"""A local cache of compiled training steps.

Compiling a step takes seconds to minutes, loading one a tenth of a second. The files are pickles with
machine code, so they are read only when this user alone can have written them, and never come from
elsewhere. Of several processes on one machine that want the same step one compiles, the others wait and
load.
"""

import fcntl
import functools
import hashlib
import json
import os
import pickle
import platform
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hedgerow.core.errors import ConfigError
from hedgerow.core.units import digest

V = TypeVar("V")
Step = Any
"""A captured TinyJit: called with tensors, returns None, has changed some of them."""

FILES_KEPT = 256
NOTES_KEPT = 256
STEPS_KEPT = 32
CHECKSUM_BYTES = 32
WRITABLE_BY_OTHERS = 0o022
TUNING = ("DEV", "BEAM", "JITBEAM", "NOOPT", "JIT", "DEFAULT_FLOAT")


@functools.cache
def jit_cache(folder: Path) -> "JitCache":
    """Return this process's cache for `folder`, so that trainers share steps."""
    return JitCache(folder)


class JitCache:
    """Compiled steps in `folder`; counts what happened to each request.

    `loaded`: read from a file; `compiled`: none was there; of these, `corrupt`: a file was damaged and
    deleted; `refused`: others could have written it, so it was deleted unread; `unwritten`: the new step
    could not be stored (a full disk) and serves this process only. Raises ConfigError when the folder
    itself is open to others.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
        if about.st_uid != os.geteuid() or about.st_mode & WRITABLE_BY_OTHERS:
            raise ConfigError(
                f"jit cache: {str(folder)!r} can be written by other users and holds machine code;"
                f" run: chmod go-w {folder}, as its owner"
            )
        self.loaded = self.compiled = self.corrupt = self.refused = self.unwritten = 0
        self._folder = folder
        self._steps: OrderedDict[str, Step] = OrderedDict()

    def step(self, identity: Mapping[str, object], build: Callable[[], Step]) -> Step:
        """Return the step of `identity` from memory, from its file, or newly built by `build`.

        A new step is read back from its file, so that it behaves exactly like a loaded one.
        """
        key = digest(json.dumps([identity, _environment()], sort_keys=True).encode())
        if key not in self._steps:
            with self._locked(key):
                self._steps[key] = self._load_or_build(self._folder / f"{key}.jit", build)
            while len(self._steps) > STEPS_KEPT:
                self._steps.popitem(last=False)
        self._steps.move_to_end(key)
        return self._steps[key]

    def note(self, identity: Mapping[str, object], kind: type[V], make: Callable[[], V]) -> V:
        """Return what `make` found out about `identity`, from its file where that is there and whole.

        For findings that take as long as a compilation, such as how a step fits a memory. `kind` is a type
        that msgspec reads; the files are plain JSON.
        """
        key = digest(json.dumps([identity, _environment()], sort_keys=True).encode())
        path = self._folder / f"{key}.json"
        with suppress(OSError, msgspec.MsgspecError):
            found = msgspec.json.decode(path.read_bytes(), type=kind)
            os.utime(path)
            return found
        made = make()
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            fresh.write_bytes(msgspec.json.encode(made))
            fresh.replace(path)
            self._prune_to("*.json", NOTES_KEPT)
        except OSError:
            self.unwritten += 1
        return made

    def _load_or_build(self, path: Path, build: Callable[[], Step]) -> Step:
        step = self._load(path)
        if step is not None:
            self.loaded += 1
            os.utime(path)
            return step
        built = build()
        built.captured.free_intermediates()
        body = pickle.dumps(built)
        del built
        self.compiled += 1
        try:
            self._write(path, body)
        except OSError:
            self.unwritten += 1
        return pickle.loads(body)  # noqa: S301 - written above

    def _load(self, path: Path) -> Step | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError:
            return self._discard(path, "refused")
        with open(descriptor, "rb") as file:  # noqa: PTH123 - the descriptor is what was checked
            about = os.fstat(descriptor)
            if about.st_uid != os.geteuid() or about.st_mode & WRITABLE_BY_OTHERS:
                return self._discard(path, "refused")
            content = file.read()
        body = memoryview(content)[CHECKSUM_BYTES:]
        if hashlib.sha256(body).digest() != content[:CHECKSUM_BYTES]:
            return self._discard(path, "corrupt")
        try:
            return pickle.loads(body)  # noqa: S301 - ours alone, and whole
        except Exception:  # noqa: BLE001 - a pickle of another library version raises anything
            return self._discard(path, "corrupt")

    def _discard(self, path: Path, counter: str) -> Step | None:
        setattr(self, counter, getattr(self, counter) + 1)
        path.unlink()
        return None

    def _write(self, path: Path, body: bytes) -> None:
        # The lock is ours, so whoever left such a file has died.
        for stale in self._folder.glob(f"{path.stem}.*.tmp"):
            stale.unlink()
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - only os.open sets the mode at creation
            file.write(hashlib.sha256(body).digest())
            file.write(body)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(path)
        self._prune_to("*.jit", FILES_KEPT)

    def _prune_to(self, pattern: str, kept: int) -> None:
        """Delete the files used longest ago; another process may be doing the same."""
        ages = []
        for file in self._folder.glob(pattern):
            try:
                ages.append((file.stat().st_mtime_ns, file))
            except FileNotFoundError:
                continue
        for _, file in sorted(ages)[:-kept]:
            file.unlink(missing_ok=True)
            file.with_suffix(".lock").unlink(missing_ok=True)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        path = self._folder / f"{key}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@functools.cache
def source_digest(*names: str) -> str:
    """Return the digest of these source files: a step compiled from other ones is another step."""
    return digest("".join(digest(Path(name).read_bytes()) for name in names).encode())


@functools.cache
def _environment() -> dict[str, str]:
    """Return what machine code depends on besides the step itself."""
    return {
        "tinygrad": version("tinygrad"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "compiler": os.environ.get("CC", ""),
        **{name: os.environ.get(name, "") for name in TUNING},
        "byteorder": sys.byteorder,
    }


def _processor() -> str:
    """Return the lines of /proc/cpuinfo that tell processors apart, each once."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    telling = ("model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
    return "\n".join(sorted({line for line in lines if line.startswith(telling)}))
