"""The market of firms of a network written in JAX or Flax.

`from_function` splits any function ``(params, *inputs) -> outputs`` into firms, without a change to it: the function is
traced, and every equation of the trace is assigned to a firm.

- An equation that uses parameters belongs to their owner. By default the first name in the path of a parameter is its
  owner: with Flax, one firm per submodule.
- An equation without parameters belongs to the firm that made all its inputs: an activation function belongs to the
  layer before it, the softmax of an attention to the firm with its projections.
- What remains, such as the sum of a residual connection, belongs to `MERCHANT`, a firm without parameters.

Neighbouring equations of a firm are one `Plant`. Values that other firms use are the goods.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx
from jax.extend import core

from jaxmarket.networks.firms import FirmMarket, Plant
from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import short_repr

__all__ = ["MERCHANT", "from_function", "from_linen", "from_nnx"]

MERCHANT = "merchant"
"""The firm without parameters that combines goods of several firms."""

Optimizers = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]
Owner = Callable[[tuple[str, ...]], str]
"""``path of a parameter -> its firm``; a path is a tuple of names, such as ``("Dense_0", "kernel")``."""


def first_name(path: tuple[str, ...]) -> str:
    """The firm of a parameter by default: the first name in its path."""
    return path[0]


@standard_promotion
def from_function(
    apply: Callable[..., PyTree],
    params: PyTree,
    *inputs: Array,
    optimizers: Optimizers,
    owner: Owner = first_name,
    **options: Any,
) -> FirmMarket:
    """The market of firms whose production is ``apply(params, *inputs)``.

    The market computes the same numbers, for inputs of these shapes. It has `FirmMarket.split` and `FirmMarket.join`,
    so that `FirmMarket.init` takes parameters like ``params``; by firm they are ``{"path/of/parameter": array}``.

    Args:
        apply: a pure function that JAX can trace and differentiate.
        params: a pytree of parameters, for their names and shapes.
        inputs: arrays or `jax.ShapeDtypeStruct`, for their shapes. Integers and keys are goods without a price.
        optimizers: as in `FirmMarket`.
        owner: the firm of a parameter.
        options: other fields of `FirmMarket`, such as ``rents``.

    Raises:
        ValueError: there are no parameters, an owner is not a name, an output does not depend on inputs or parameters,
            or one equation uses parameters of two firms.
    """
    leaves, structure = jax.tree.flatten_with_path(params)
    if not leaves:
        raise ValueError(
            f"params: expected a pytree of arrays, got {short_repr(params)}; pass the network's parameters"
        )
    paths = [tuple(_name(entry) for entry in path) for path, _ in leaves]
    owners = [_checked_owner(owner, path) for path in paths]
    labels = ["/".join(path) for path in paths]
    closed = jax.make_jaxpr(apply)(params, *inputs)
    division = _Division(closed, owners, labels)

    def split(params: PyTree) -> dict[str, PyTree]:
        given, found = jax.tree.flatten(params)
        if found != structure:
            raise ValueError(f"params: expected the structure {structure}, got {found}; pass the network's parameters")
        owned: dict[str, PyTree] = {}
        for leaf, firm, label in zip(given, owners, labels, strict=True):
            owned.setdefault(firm, {})[label] = jnp.asarray(leaf)
        return owned

    def join(owned: dict[str, PyTree]) -> PyTree:
        return structure.unflatten([owned[firm][label] for firm, label in zip(owners, labels, strict=True)])

    if isinstance(optimizers, Mapping) and MERCHANT in division.firms:
        optimizers = {MERCHANT: optax.identity(), **optimizers}
    idle = [Plant(firm, lambda params: (), (), ()) for firm in dict.fromkeys(owners) if firm not in division.firms]
    return FirmMarket(
        plants=(*division.plants(), *idle),
        buys=division.inputs,
        sells=division.outputs,
        optimizers=optimizers,
        split=split,
        join=join,
        shapes=tuple(jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in division.entered),
        **options,
    )


def from_linen(
    module: linen.Module, variables: Mapping[str, Any], *inputs: Array, optimizers: Optimizers, **options: Any
) -> FirmMarket:
    """The market of firms of a Flax linen module; by default every submodule is a firm.

    Args:
        module: the network.
        variables: ``{"params": ...}``, as returned by ``module.init``; `FirmMarket.init` takes ``variables["params"]``.
        inputs: as in `from_function`.
        optimizers: as in `FirmMarket`.
        options: other arguments of `from_function`.

    Raises:
        ValueError: there are no parameters, or there are other collections, such as statistics of batches; and as
            `from_function`.
    """
    if isinstance(variables, Mapping) and "params" not in variables:
        raise ValueError(
            f'variables: expected {{"params": ...}}, got {sorted(variables)}; pass what module.init returns'
        )
    if not isinstance(variables, Mapping) or set(variables) != {"params"}:
        held = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(
            f'variables: expected {{"params": ...}} only, got {held}; firms own parameters only, and no state that '
            "changes in a forward pass: use LayerNorm instead of BatchNorm"
        )

    def apply(params: PyTree, *inputs: Array) -> PyTree:
        return module.apply({"params": params}, *inputs)

    return from_function(apply, variables["params"], *inputs, optimizers=optimizers, **options)


def from_nnx(module: nnx.Module, *inputs: Array, optimizers: Optimizers, **options: Any) -> FirmMarket:
    """The market of firms of a Flax nnx module; by default every attribute with parameters is a firm.

    `FirmMarket.init` takes ``nnx.to_pure_dict(nnx.state(module, nnx.Param))``.

    Args:
        module: the network. Variables that are not of type `nnx.Param` keep the values they have now.
        inputs: as in `from_function`.
        optimizers: as in `FirmMarket`.
        options: other arguments of `from_function`.

    Raises:
        ValueError: as `from_function`.
    """
    graph, state, rest = nnx.split(module, nnx.Param, ...)

    def apply(params: PyTree, *inputs: Array) -> PyTree:
        held = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(held, params)
        return nnx.merge(graph, held, rest)(*inputs)

    return from_function(apply, nnx.to_pure_dict(state), *inputs, optimizers=optimizers, **options)


@dataclasses.dataclass
class _Segment:
    """The equations of one plant."""

    firm: str
    equations: list[core.JaxprEqn]


class _Division:
    """The equations of a trace, divided among firms."""

    def __init__(self, closed: core.ClosedJaxpr, owners: list[str], labels: list[str]):
        self.closed = closed
        jaxpr, count = closed.jaxpr, len(owners)
        self.leaves = dict(zip(jaxpr.invars[:count], zip(owners, labels, strict=True), strict=True))
        self.entered = jaxpr.invars[count:]
        self.segments: list[_Segment] = []
        made = self._segment(jaxpr.eqns)
        for var in jaxpr.outvars:
            if isinstance(var, core.Literal) or (var not in made and var not in self.entered):
                raise ValueError(
                    "apply: expected outputs that are computed from inputs and parameters, got a constant or "
                    "a parameter; return what consumers value"
                )
        self.names = {var: "input" if len(self.entered) == 1 else f"input{k}" for k, var in enumerate(self.entered)}
        counts: dict[str, int] = {}
        self.sold = self._sold()
        for segment, sold in zip(self.segments, self.sold, strict=True):
            for var in sold:
                counts[segment.firm] = counts.get(segment.firm, 0) + 1
                self.names[var] = f"{segment.firm}:{counts[segment.firm]}"
        self.inputs = tuple(self.names[var] for var in self.entered)
        self.outputs = tuple(self.names[var] for var in jaxpr.outvars)

    @property
    def firms(self) -> set[str]:
        """The firms that produce something."""
        return {segment.firm for segment in self.segments}

    def _segment(self, equations: list[core.JaxprEqn]) -> dict[core.Var, int]:
        """Assign every equation to a firm and to one of its plants; the plant of every variable."""
        maker: dict[core.Var, str] = {}  # the firm that sells a variable; without an entry for free constants
        own: dict[core.Var, str] = {}  # the firm whose parameters alone determine a variable
        place: dict[core.Var, int] = {}  # the segment that makes a variable
        for equation in equations:
            used = [var for var in equation.invars if not isinstance(var, core.Literal)]
            direct = {self.leaves[var][0] for var in used if var in self.leaves}
            derived = {own[var] for var in used if var in own}
            if len(direct) > 1:
                raise ValueError(
                    f"owner: one equation ({equation.primitive}) uses parameters of {' and '.join(sorted(direct))}; "
                    "let one firm own both"
                )
            makers = {maker.get(var, MERCHANT) for var in used if var in maker or var in self.entered}
            candidates = direct or derived or makers
            firm = min(candidates) if direct or derived or len(makers) == 1 else MERCHANT
            last = max((place[var] for var in used if var in place), default=-1)
            found = [k for k, segment in enumerate(self.segments) if segment.firm == firm]
            if not found or found[-1] < last:
                self.segments.append(_Segment(firm, []))
                found = [len(self.segments) - 1]
            self.segments[found[-1]].equations.append(equation)
            free = not used or all(var in place and var not in maker for var in used)
            for var in equation.outvars:
                place[var] = found[-1]
                if not free and jnp.issubdtype(jnp.result_type(var.aval), jnp.inexact):
                    maker[var] = firm
                if all(var in self.leaves or var in own for var in used) and used:
                    own[var] = firm
        return place

    def _sold(self) -> list[list[core.Var]]:
        """For each segment, the variables that others use."""
        uses: dict[core.Var, set[int]] = {}
        for k, segment in enumerate(self.segments):
            for equation in segment.equations:
                for var in equation.invars:
                    if not isinstance(var, core.Literal):
                        uses.setdefault(var, set()).add(k)
        for var in self.closed.jaxpr.outvars:
            uses.setdefault(var, set()).add(-1)
        return [
            [var for equation in segment.equations for var in equation.outvars if uses.get(var, set()) - {k}]
            for k, segment in enumerate(self.segments)
        ]

    def plants(self) -> tuple[Plant, ...]:
        """The plants, in the order of production."""
        constants = dict(zip(self.closed.jaxpr.constvars, self.closed.consts, strict=True))
        made = []
        for segment, sold in zip(self.segments, self.sold, strict=True):
            inside = {var for equation in segment.equations for var in equation.outvars}
            used = dict.fromkeys(
                var
                for equation in segment.equations
                for var in equation.invars
                if not isinstance(var, core.Literal) and var not in inside
            )
            leaves = [var for var in used if var in self.leaves]
            consts = [var for var in used if var in constants]
            bought = [var for var in used if var in self.names]
            names = self.closed.jaxpr.debug_info.with_unknown_names()
            body = core.Jaxpr(consts, [*leaves, *bought], sold, segment.equations, debug_info=names)
            made.append(
                Plant(
                    segment.firm,
                    _production(
                        core.ClosedJaxpr(body, [constants[var] for var in consts]), [self.leaves[v][1] for v in leaves]
                    ),
                    tuple(self.names[var] for var in bought),
                    tuple(self.names[var] for var in sold),
                )
            )
        return tuple(made)


def _production(closed: core.ClosedJaxpr, labels: list[str]) -> Callable[..., tuple[Array, ...]]:
    function = core.jaxpr_as_fun(closed)
    return lambda params, *bought: tuple(function(*(params[label] for label in labels), *bought))


def _name(entry: Any) -> str:
    """A key of a path: of a dictionary, an attribute or a position."""
    for field in ("key", "name", "idx"):
        if hasattr(entry, field):
            return str(getattr(entry, field))
    return str(entry)


def _checked_owner(owner: Owner, path: tuple[str, ...]) -> str:
    firm = owner(path)
    if not isinstance(firm, str) or firm in ("", MERCHANT):
        raise ValueError(
            f"owner: expected the name of a firm for {path}, got {firm!r}; return text other than {MERCHANT!r}"
        )
    return firm
