"""Functions of the user's own, which a configuration names as package.module:name."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from evoselect_pipeline.errors import ConfigError


def own_function(path: str, where: str) -> Callable[..., Any]:
    """Import a function from the environment that this runs in.

    Parameters
    ----------
    path : str
        As package.module:name.
    where : str
        The key that names it, for messages.

    Raises
    ------
    ConfigError
        If it cannot be imported, or is no function.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing runs the user's code
        raise ConfigError(
            f"{where} {path}: cannot be imported: {type(error).__name__}: {error}. Install its"
            " package where the round runs, or put its folder on PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigError(f"{where} {path}: expected a function, found {type(found).__name__}")
    return found


def source_of(path: str, where: str) -> str:
    """The source of a function's module, by which one version is told from another.

    What else decides what the function does, nobody can see from here.

    Raises
    ------
    ConfigError
        If the module has no source.
    """
    own_function(path, where)
    try:
        return inspect.getsource(sys.modules[path.partition(":")[0]])
    except (OSError, TypeError) as error:
        raise ConfigError(
            f"{where} {path}: its module has no source ({error}), by which one version could be"
            " told from another; call it from a module of your own"
        ) from None
