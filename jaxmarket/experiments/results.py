"""The results of an experiment's conditions, and their measures."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from jaxmarket.experiments.conditions import Scope

__all__ = ["FailedConditionError", "Measure", "Results"]

T = TypeVar("T")

Measure = Callable[[Any], Any]
"""The values of a condition's result: ``result -> f [seeds]``."""


class FailedConditionError(Exception):
    """A condition that is needed has failed."""


class Results(Mapping[str, Any]):
    """The results of the conditions by name.

    Args:
        scope: size and settings of the experiment.
        finished: results by name, in the order of the conditions.
        failed: the reason by name.
        measures: measures by name.
    """

    def __init__(
        self, scope: Scope, finished: Mapping[str, Any], failed: Mapping[str, str], measures: Mapping[str, Measure]
    ) -> None:
        self.scope, self.failed, self._finished, self._measures = scope, dict(failed), finished, measures
        self._values: dict[Hashable, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """The result of a condition.

        Raises:
            FailedConditionError: it has failed.
            KeyError: there is no such condition.
        """
        if name in self.failed:
            raise FailedConditionError(f"{name} failed: {self.failed[name]}")
        return self._finished[name]

    def __iter__(self) -> Iterator[str]:
        """The names of the conditions that finished."""
        return iter(self._finished)

    def __len__(self) -> int:
        return len(self._finished)

    def measure(self, condition: str, measure: str) -> np.ndarray:
        """The values of a measure of a condition: f [seeds]; computed once."""
        return self.once((condition, measure), lambda: np.asarray(self._measures[measure](self[condition])))

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What ``compute`` returned for that key before, or returns now; for quantities of several conditions."""
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]
