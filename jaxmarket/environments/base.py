"""gymnax, imported without the plotting libraries that only its rendering uses.

gymnax's environments import Matplotlib and seaborn (and with it pandas and ``scipy.stats``), which takes most of two
seconds. While gymnax is imported here, stand-ins take their places in ``sys.modules``; a stand-in imports its library
when gymnax uses it. Nothing changes if they are already imported.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

__all__ = ["environment", "gymnax", "spaces"]

_PLOTTING = ("matplotlib", "matplotlib.pyplot", "matplotlib.colors", "seaborn")


class _Postponed(ModuleType):
    """A stand-in for a module, which is imported at the first use of one of its attributes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import statement looks for __path__
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def _without_plotting() -> Iterator[None]:
    if "matplotlib" in sys.modules or "gymnax" in sys.modules:
        yield
        return
    postponed = {name: _Postponed(name) for name in _PLOTTING if name not in sys.modules}
    for name, module in postponed.items():
        parent, _, child = name.rpartition(".")
        if parent:
            vars(postponed[parent])[child] = module  # `import a.b as c` reads the attribute of a
    sys.modules.update(postponed)
    try:
        yield
    finally:
        for name, module in postponed.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


with _without_plotting():
    import gymnax
    from gymnax.environments import environment, spaces
