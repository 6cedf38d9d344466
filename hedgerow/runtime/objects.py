"""Finds the user's own objects, named "module:attribute" in the configuration."""

import importlib
import sys
from pathlib import Path
from typing import Any

from hedgerow.core.errors import ConfigError


def load_object(key: str, name: str) -> Any:
    """Import "module:attribute" and return the attribute, a callable.

    The current folder is searched too. Raises ConfigError, naming the configuration `key`, when the text
    has another form, the module cannot be imported or the attribute is missing or not callable.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(f"{key}: {name!r} must look like 'module:attribute'")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{key}: {name!r}: {error}; run in the folder that holds it, or set PYTHONPATH"
        ) from error
    except Exception as error:
        raise ConfigError(f"{key}: importing {module_name!r} failed: {error!r}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        what = "has no such attribute" if found is None else "is not callable"
        raise ConfigError(f"{key}: {name!r}: {attribute!r} of module {module_name!r} {what}")
    return found
