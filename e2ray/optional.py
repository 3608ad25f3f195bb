"""Libraries that are loaded where they are first asked for and not before.

They come with an extra that may not be installed, or take long to load and are used by few of a run's processes. All
others are imported at the top of the module that uses them.
"""

import importlib
from types import ModuleType


def library(name: str) -> ModuleType:
    """Return a module of such a library, or one of our own that cannot do without it.

    Raises:
        ImportError: If it is not installed.
    """
    return importlib.import_module(name)
