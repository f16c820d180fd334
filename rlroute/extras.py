"""Import of optional libraries, with an error that names the extra that brings them."""

from __future__ import annotations

import importlib
from typing import Any

from rlroute.types import RLRouteError


def require(module_name: str, extra: str) -> Any:
    """Import and return `module_name`.

    Raises:
        RLRouteError: the module is not installed; the message names the extra that holds it.
    """
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it needs itself is broken
        raise RLRouteError(
            f"{module_name} is not installed: it comes with the extra '{extra}', "
            f"pip install 'rlroute[{extra}]'"
        ) from None
