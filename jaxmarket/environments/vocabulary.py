"""What an observation contains and what actions apply to, for agents that are expressions."""

import dataclasses
from typing import Any

import numpy as np

from jaxmarket.validation import short_repr

__all__ = ["Vocabulary"]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The names of an environment's sensors, for `jaxmarket.deep_market.Expressions`.

    An observation is f [G + F · S]: the G ``numbers``, followed by the first of F ``features`` for all S ``items``, the
    second one for all items, and so on. For example, the items of blocks world are its stacks
    (`jaxmarket.environments.BlocksWorld.vocabulary`).

    Attributes:
        numbers: names of the sensors that concern no item.
        items: names of the items.
        features: names of the sensors that every item has.
        actions: the number of actions, if they do not apply to items. Otherwise the action for each item, a tuple [S],
            or for each pair of items, a tuple [S] of tuples [S]; -1 where there is none.

    Raises:
        ValueError: a name is not a word or is used twice, or actions have another shape.
    """

    numbers: tuple[str, ...]
    items: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    actions: Any = 2

    def __post_init__(self) -> None:
        names = (*self.numbers, *self.items, *self.features)
        for field in ("numbers", "items", "features"):
            for name in getattr(self, field):
                if not isinstance(name, str) or not name or any(c.isspace() or c in "()" for c in name):
                    raise ValueError(f"{field}: expected words without brackets, got {short_repr(name)}; rename it")
                if names.count(name) > 1:
                    raise ValueError(f"{field}: expected different names, got {name!r} twice; rename one of them")
        if bool(self.items) != bool(self.features):
            raise ValueError(
                f"features: expected features of items, got {self.features!r} of {self.items!r}; give both or neither"
            )
        table = np.asarray(self.actions)
        shape = (len(self.items),) * table.ndim
        if table.dtype.kind != "i" or table.ndim > 2 or table.shape != shape or (table < (-1 if shape else 1)).any():
            raise ValueError(
                f"actions: expected a number of actions >= 1, or integers >= -1 for each of {len(self.items)} items or "
                f"pair of items, got {short_repr(self.actions)}"
            )

    @property
    def size(self) -> int:
        """The length of an observation."""
        return len(self.numbers) + len(self.features) * len(self.items)

    @property
    def operands(self) -> int:
        """The number of items that an action applies to: 0, 1 or 2."""
        return np.asarray(self.actions).ndim

    @property
    def num_actions(self) -> int:
        """The number of actions that the vocabulary names."""
        return int(np.max(self.actions)) + (self.operands > 0)
