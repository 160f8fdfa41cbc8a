"""Environments: the library's own, gymnax's by id, and the adapter that a society uses for all of them.

Importing this package is cheap: gymnax (which imports gymnasium) is imported when an environment is first made, and its
plotting libraries when it plots (`jaxmarket.environments.base`).
"""

import difflib
import functools
import importlib
from typing import TYPE_CHECKING, Any

from jaxmarket.environments.adapter import Adapter, Step, adapt
from jaxmarket.switches import check_backend
from jaxmarket.types import PyTree
from jaxmarket.validation import short_repr

if TYPE_CHECKING:
    from jaxmarket.environments.blocks import BlocksWorld
    from jaxmarket.environments.functions import Functions
    from jaxmarket.environments.mazes import Maze, Maze4, Maze5, Maze6, Woods1, Woods101
    from jaxmarket.environments.memory import Memory
    from jaxmarket.environments.mental_rotation import MentalRotation
    from jaxmarket.environments.multiplexer import Multiplexer
    from jaxmarket.environments.options import Option, Options
    from jaxmarket.environments.regimes import Regimes
    from jaxmarket.environments.rooms import TwoRooms
    from jaxmarket.environments.supply_chain import SupplyChain
    from jaxmarket.environments.tabular import Bandit, Chain, Duality, FiniteMDP, garnet
    from jaxmarket.environments.targets import Targets
    from jaxmarket.environments.tmaze import TMaze
    from jaxmarket.environments.vocabulary import Vocabulary
    from jaxmarket.training.training_environment import Knob, TrainingEnvironment

__all__ = [
    "OURS",
    "Adapter",
    "Bandit",
    "BlocksWorld",
    "Chain",
    "Duality",
    "FiniteMDP",
    "Functions",
    "Knob",
    "Maze",
    "Maze4",
    "Maze5",
    "Maze6",
    "Memory",
    "MentalRotation",
    "Multiplexer",
    "Option",
    "Options",
    "Regimes",
    "Step",
    "SupplyChain",
    "TMaze",
    "Targets",
    "TrainingEnvironment",
    "TwoRooms",
    "Vocabulary",
    "Woods1",
    "Woods101",
    "adapt",
    "environment_ids",
    "garnet",
    "make",
]

_MODULES = {
    "BlocksWorld": "blocks",
    "Functions": "functions",
    "Memory": "memory",
    "MentalRotation": "mental_rotation",
    "Multiplexer": "multiplexer",
    "Option": "options",
    "Options": "options",
    "Regimes": "regimes",
    "SupplyChain": "supply_chain",
    "TMaze": "tmaze",
    "Targets": "targets",
    "TwoRooms": "rooms",
    "Vocabulary": "vocabulary",
    **dict.fromkeys(("Bandit", "Chain", "Duality", "FiniteMDP", "garnet"), "tabular"),
    **dict.fromkeys(("Maze", "Maze4", "Maze5", "Maze6", "Woods1", "Woods101"), "mazes"),
    # By name only: training imports the environments.
    **dict.fromkeys(("Knob", "TrainingEnvironment"), ".training.training_environment"),
}
_TWO_ROOMS = ("Red", "Green", "Blue", "GreenTask", "BlueTask")
OURS = {
    "Bandit-v0": ("Bandit",),
    "BlocksWorld3-v0": ("BlocksWorld",),
    "Chain-v0": ("Chain",),
    "Duality-v0": ("Duality",),
    **{f"Maze{n}-v0": (f"Maze{n}",) for n in (4, 5, 6)},
    "MentalRotation-v0": ("MentalRotation",),
    **{f"Multiplexer{address + 2**address}-v0": ("Multiplexer", address) for address in (2, 3, 4)},
    "Regimes-v0": ("Regimes",),
    "SupplyChain2-v0": ("SupplyChain", 2),
    "TMaze10-v0": ("TMaze", 10),
    "Targets-v0": ("Targets",),
    "TrainingChain-v0": ("TrainingEnvironment",),
    **{f"TwoRooms-{task}-v0": ("TwoRooms", f"TwoRooms-{task}-v0") for task in _TWO_ROOMS},
    "Woods1-v0": ("Woods1",),
    "Woods101-v0": ("Woods101",),
}
"""The ids of the library's own environments: name of the constructor and its arguments."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def environment_ids() -> tuple[str, ...]:
    """The ids that `make` accepts."""
    from jaxmarket.environments.base import gymnax  # noqa: PLC0415  takes a third of a second

    return (*OURS, *gymnax.registered_envs)


def make(env_id: str) -> tuple[Any, PyTree]:
    """Return ``(env, default_params)``, as ``gymnax.make`` does.

    Equal ids return the same environment object, so that compiled programs are shared.

    Args:
        env_id: an id of `OURS`, such as ``Bandit-v0`` or ``TwoRooms-GreenTask-v0``, or of a gymnax environment.

    Raises:
        ValueError: the id is unknown, or the environment needs data that is missing.
    """
    if not isinstance(env_id, str):
        raise ValueError(f"env: expected the id of an environment, got {short_repr(env_id)}")
    check_backend()
    env = _make(env_id)
    return env, adapt(env).default_params


@functools.cache
def _make(env_id: str) -> Any:
    if env_id in OURS:
        factory, *arguments = OURS[env_id]
        return __getattr__(factory)(*arguments)
    from jaxmarket.environments.base import gymnax  # noqa: PLC0415

    known = environment_ids()
    if env_id not in known:
        close = difflib.get_close_matches(str(env_id), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
        raise ValueError(f"env: unknown environment {env_id!r}; {hint}")
    try:
        env, _ = gymnax.make(env_id)
    except OSError as error:
        raise ValueError(
            f"env: {env_id} cannot be built: it reads data that is not available ({error}); choose another id"
        ) from error
    return env
