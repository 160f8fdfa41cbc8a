"""Objects in saved configurations: names of the form ``module:qualname``, and the way back.

A file names objects and holds the values of their fields. It never decides what is imported or called: a name is looked
up among the modules that the program has imported already, without running their code, and only frozen dataclasses of
the expected kind are constructed.
"""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ABSENT", "MissingObjectError", "describe", "find", "label", "name_of", "restore"]

ABSENT: Any = object()
"""What `find` returns if there is no such object."""


class MissingObjectError(ValueError):
    """A saved configuration names an object that cannot be resolved here."""


def name_of(value: Any) -> str:
    """``module:qualname`` of a class, of an object that is a global of an imported module, or else of its class."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}:{value.__qualname__}"
    for name, module in [*_home(value), *sys.modules.copy().items()]:
        for attribute, other in list(getattr(module, "__dict__", {}).items()):
            if other is value:
                return f"{name}:{attribute}"
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _home(value: Any) -> list[tuple[str, Any]]:
    """The modules that define an object's functions and its class, where its global is most likely to be."""
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    parts = [getattr(value, field.name) for field in fields]
    names = [part.__module__ for part in (*filter(inspect.isroutine, parts), type(value))]
    return [(name, sys.modules[name]) for name in names if name in sys.modules]


def describe(value: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object as JSON holds it: its name, and its fields where it is an instance of a dataclass.

    Args:
        value: the object.
        leave_out: fields that the caller saves elsewhere.
    """
    name = name_of(value)
    entry: dict[str, Any] = {"object": name}
    if find(name) is value or not dataclasses.is_dataclass(value):
        return entry
    fields = {
        field.name: _describe_value(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if field.init and field.name not in leave_out and not _is_default(value, field)
    }
    return entry | {"fields": fields}


def _is_default(value: Any, field: dataclasses.Field) -> bool:
    """Whether a field has a default that JSON would not need to repeat: None or an infinite number."""
    default = field.default
    plain = default is None or (isinstance(default, float) and default in (float("inf"), float("-inf")))
    return plain and getattr(value, field.name) == default


def _describe_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_describe_value(each) for each in value]
    return describe(value)


def label(value: Any) -> str:
    """An object in tables and names of folders: its own name, or its class and the fields that differ from defaults."""
    own = getattr(value, "name", None)
    if isinstance(own, str):
        return own
    if inspect.isclass(value) or not dataclasses.is_dataclass(value):
        return getattr(value, "__name__", type(value).__name__)
    fields = [f for f in dataclasses.fields(value) if f.init and getattr(value, f.name) != f.default]
    return f"{type(value).__name__}({','.join(f'{f.name}={getattr(value, f.name)}' for f in fields)})"


def find(name: str) -> Any:
    """The object of that name in a module that is imported already, or `ABSENT`."""
    module, _, qualname = name.partition(":")
    scope: Any = sys.modules.get(module)
    for part in qualname.split("."):
        # `vars` and not `getattr`: a module's `__getattr__` may import, a class's may do anything.
        scope = vars(scope).get(part, ABSENT) if inspect.ismodule(scope) or inspect.isclass(scope) else ABSENT
    return scope


def restore(
    field: str, entry: Any, accepts: Callable[[Any], bool], objects: Mapping[str, Any], extra: Mapping[str, Any]
) -> Any:
    """The object that an entry of `describe` names.

    Args:
        field: the setting it belongs to.
        entry: from a file.
        accepts: whether a class or an object is of the kind that the setting takes.
        objects: objects by setting or by name, which come before imported modules.
        extra: fields that were saved elsewhere.

    Raises:
        MissingObjectError: there is no such object, or it is of another kind.
    """
    name = entry.get("object") if isinstance(entry, Mapping) else None
    if not isinstance(name, str):
        raise MissingObjectError(f"{field}: expected the name of an object in the saved settings, got {entry!r:.60}")
    for key in (field, name):
        if key in objects:
            return objects[key]
    found, fields = find(name), entry.get("fields")
    whole = fields is None and not inspect.isroutine(found) and (field == "agent" or not inspect.isclass(found))
    if found is not ABSENT and whole and accepts(found):
        return found
    if isinstance(fields, Mapping) and _is_frozen(found) and accepts(found):
        settable = {f.name for f in dataclasses.fields(found) if f.init}  # type: ignore[arg-type]
        try:
            parts = getattr(found, "parts", {})
            values = {
                key: _restore_value(f"{field}.{key}", value, objects, parts.get(key, _is_no_class))
                for key, value in fields.items()
            }
            return found(**values | {key: value for key, value in extra.items() if key in settable})
        except MissingObjectError:
            raise
        except (TypeError, ValueError) as error:
            raise MissingObjectError(f"{field}: {name} does not accept its saved fields ({error})") from error
    module, root = name.partition(":")[0], field.partition(".")[0]
    remedy = f"pass objects={{{root!r}: ...}} in Python"
    if module == "__main__":
        reason = "was defined in a script"
        remedy += "; this is not needed if it is defined in a module"
    elif inspect.isclass(found) and accepts(found):
        reason = "is of a class that is no frozen dataclass, so that the folder does not hold its fields"
        remedy += "; this is not needed if the class is a frozen dataclass, or the object a global of a module"
    else:
        reason = "cannot be resolved here"
        remedy = f"import its module (on the command line --import {module}), or {remedy}"
    raise MissingObjectError(f"{field}: the run used the object {name}, which {reason}; {remedy}")


def _is_frozen(found: Any) -> bool:
    """Whether it is a class of frozen dataclasses."""
    return inspect.isclass(found) and dataclasses.is_dataclass(found) and found.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _is_no_class(found: Any) -> bool:
    return not inspect.isclass(found)


def _restore_value(field: str, value: Any, objects: Mapping[str, Any], accepts: Callable[[Any], bool]) -> Any:
    if isinstance(value, list):
        return tuple(_restore_value(field, each, objects, accepts) for each in value)
    if isinstance(value, Mapping):
        # A field of a field: only what exists already, what the user passes, or a kind that the object accepts there.
        return restore(field, value, accepts, objects, {})
    return value
