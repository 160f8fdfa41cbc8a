"""Run-time checks of the shapes and dtypes in annotations: `jaxtyping` with `beartype`, for tests only.

Fields of structs are not checked: vmap's ``in_axes``, trees of shapes and batched rows are structs with other leaves.
"""

from collections.abc import Callable
from typing import Any, get_args

import flax.struct
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, install_import_hook

MODULES = (
    *(f"jaxmarket.{name}" for name in ("accounts", "auctions", "collectives", "evaluation", "metrics", "policies")),
    *(f"jaxmarket.{name}" for name in ("rollouts", "settlement", "society", "types", "learners")),
    *(f"jaxmarket.{name}" for name in ("deep_market", "networks", "training", "wide_market")),
)


def _has_shape(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_shape, get_args(hint)))


def check(function: Callable) -> Callable:
    """Check the arguments and results that are annotated with shapes, and no others."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    if not function.__annotations__:  # as of most inner functions, which are made again in each trace
        return function
    return beartype(function, conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float


def install() -> None:
    """Check the functions of `MODULES`; call it before jaxmarket is imported."""
    flax.struct.PyTreeNode.__no_type_check__ = True
    install_import_hook(MODULES, "shapes.check")
