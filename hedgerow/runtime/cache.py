"""Where this host keeps what can be made again: compiled training steps and kernels."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return HEDGEROW_CACHE, or the user's cache folder: all nodes of a host share it."""
    own = os.environ.get("HEDGEROW_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hedgerow"
