"""Content addresses: a digest of what determines a result, its settings and the code that computes it."""

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmarket.training.arrays import digest, flatten
from jaxmarket.validation import short_repr

__all__ = ["address", "encode", "refresh", "source_digest"]

_PACKAGE = "jaxmarket"
# They only show or store results. The package itself imports everything.
_WITHOUT_EFFECT = (
    "jaxmarket.view",
    "jaxmarket.cli",
    "jaxmarket.experiments",
    "jaxmarket.runs.addresses",
    "jaxmarket.runs.jobs",
    "jaxmarket.runs.schedule",
)
_LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))

# Not by `ast`, which fails in Python 3.11 when several threads use it.
_IMPORTS = re.compile(
    r"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]+)|import[ \t]+([^\n#]+))", re.MULTILINE
)


def address(identity: Mapping[str, Any]) -> str:
    """The digest of an identity, a JSON object: hexadecimal."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def encode(value: Any) -> Any:
    """Encode a value as JSON, such that different values have different encodings.

    Numbers, text, arrays, pytrees of them, dataclasses, classes and functions have an encoding; that of a function
    includes the arguments of a `functools.partial` and the variables of a closure.

    Raises:
        ValueError: the value is of another kind.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return {"array": digest(flatten(value))}
    if isinstance(value, Mapping):
        return {"mapping": [[encode(key), encode(each)] for key, each in value.items()]}
    if isinstance(value, tuple | list):
        return [encode(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(encode(each)) for each in value)
    if isinstance(value, functools.partial):
        return {"partial": encode(value.func), "args": encode(value.args), "keywords": encode(value.keywords)}
    if inspect.ismethod(value):
        return {"method": value.__name__, "of": encode(value.__self__)}
    if inspect.isclass(value) or inspect.isroutine(value) or hasattr(value, "__wrapped__"):
        value = inspect.unwrap(value)  # decorators, such as checks of types, hold other objects
        name = {"name": f"{value.__module__}:{value.__qualname__}"}
        return name | ({"bound": encode(_bound(value))} if _bound(value) else {})
    kind = f"{type(value).__module__}:{type(value).__qualname__}"
    if dataclasses.is_dataclass(value):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        return {"object": kind, "fields": {name: encode(getattr(value, name)) for name in fields}}
    if isinstance(value, Path):
        raise ValueError(
            f"conditions: expected values that determine a result, got the path {value}; pass its contents"
        )
    raise ValueError(
        f"conditions: cannot identify {short_repr(value)} of {kind}; use numbers, text, arrays, dataclasses or "
        "functions of modules"
    )


def source_digest(*values: Any, modules: Iterable[str] = ()) -> str:
    """The digest of the source of the modules that define the values and of the modules that these import.

    Modules of the standard library and of other installed packages are left out: a run's versions identify them.

    Args:
        values: functions, classes and objects.
        modules: names of other modules.

    Raises:
        ValueError: a value is defined in a notebook or at a prompt, whose source cannot be read.
    """
    waiting = {module for value in values for module in _modules_of(value)}.union(modules)
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name == "__main__" and _file(name) is None:
            raise ValueError(
                "conditions: code that is defined in a notebook or at a prompt cannot be identified; put it into a file"
            )
        if name in found or not _is_ours(name):
            continue
        code, imported = _source(name)
        found[name] = hashlib.sha256(code).hexdigest()
        waiting |= {each for each in imported if not each.startswith(_WITHOUT_EFFECT) and each != _PACKAGE}
    return address(found)


def _modules_of(value: Any) -> Iterator[str]:
    """The modules that define the classes and functions in a value."""
    if isinstance(value, functools.partial):
        yield from _modules_of((value.func, value.args, value.keywords))
    elif isinstance(value, Mapping):
        yield from _modules_of((*value.keys(), *value.values()))
    elif isinstance(value, tuple | list | set | frozenset):
        for each in value:
            yield from _modules_of(each)
    elif inspect.ismethod(value):
        yield from _modules_of(value.__self__)
    elif inspect.isclass(value) or inspect.isroutine(value) or hasattr(value, "__wrapped__"):
        value = inspect.unwrap(value)
        if value.__module__ is not None:  # as of some compiled functions
            yield value.__module__
        yield from _modules_of(_bound(value))
    elif not isinstance(value, np.ndarray | np.generic | jax.Array):
        yield type(value).__module__
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield from _modules_of(getattr(value, field.name))


def _bound(function: Any) -> list[Any]:
    """The values that a function defined inside another one, or a lambda, has from there."""
    if not {"<locals>", "<lambda>"} & set(function.__qualname__.split(".")):
        return []
    cells = getattr(function, "__closure__", None) or ()
    return [*(cell.cell_contents for cell in cells), *(getattr(function, "__defaults__", None) or ())]


def refresh() -> None:
    """Forget the source that was read, which may have changed since."""
    _source.cache_clear()
    _is_ours.cache_clear()


@functools.cache
def _is_ours(name: str) -> bool:
    """Whether a module belongs to this package, or to no installed one."""
    package = name.partition(".")[0]
    if package == _PACKAGE:
        return _file(name) is not None
    if package != name and not _is_ours(package):  # without an import of another package's modules
        return False
    file = _file(name)
    return file is not None and not any(file.is_relative_to(library) for library in _LIBRARIES)


def _file(name: str) -> Path | None:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        file = spec.origin if spec is not None and spec.has_location else None
    return Path(file) if file and file.endswith(".py") else None


@functools.cache
def _source(name: str) -> tuple[bytes, frozenset[str]]:
    """The source of a module and the names of what it may import; empty without a file."""
    file = _file(name)
    if file is None:
        return b"", frozenset()
    code, imported = file.read_bytes(), set()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for origin, names, modules in _IMPORTS.findall(code.decode()):
        base = importlib.util.resolve_name(origin, package) if origin.startswith(".") else origin
        found = [each.split()[0] for each in re.split(r"[(),]", names or modules) if each.split()]
        imported |= {base, *(f"{base}.{each}" for each in found)} if base else set(found)
    return code, frozenset(each for each in imported if _is_ours(each))
