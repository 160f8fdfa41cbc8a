"""The results of an experiment's conditions, and their measures."""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from jaxmarket.experiments.conditions import Scope

__all__ = ["FailedConditionError", "Measure", "Results", "one_line"]

T = TypeVar("T")

Measure = Callable[[Any], Any]
"""The values of a condition's result: ``result -> f [seeds]``."""


class FailedConditionError(Exception):
    """A condition that is needed has failed."""


def one_line(error: Exception) -> str:
    """An exception as one line."""
    if isinstance(error, FailedConditionError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


class Results(Mapping[str, Any]):
    """The results of the conditions by name.

    Args:
        scope: size and settings of the experiment.
        finished: results by name, in the order of the conditions.
        failed: the exception by name.
        measures: measures by name.

    Attributes:
        errors: exceptions of conditions, and of the tables, figures and claims that could not be made, by name.
    """

    def __init__(
        self,
        scope: Scope,
        finished: Mapping[str, Any],
        failed: Mapping[str, Exception],
        measures: Mapping[str, Measure],
    ) -> None:
        self.scope, self.errors = scope, dict(failed)
        self._finished, self._failed, self._measures = finished, dict(failed), measures
        self._values: dict[Hashable, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """The result of a condition.

        Raises:
            FailedConditionError: it has failed.
            KeyError: there is no such condition.
        """
        if name in self._failed:
            raise FailedConditionError(f"{name} failed: {one_line(self._failed[name])}")
        return self._finished[name]

    def __contains__(self, name: object) -> bool:
        return name in self._finished

    def __iter__(self) -> Iterator[str]:
        """The names of the conditions that finished."""
        return iter(self._finished)

    def __len__(self) -> int:
        return len(self._finished)

    def measure(self, condition: str, measure: str) -> np.ndarray:
        """The values of a measure of a condition: f [seeds]; computed once.

        An array of a `Compute` condition is a measure by its own name, unless the experiment has one of that name.
        """
        result = self[condition]
        if isinstance(result, Mapping) and measure not in self._measures:
            return result[measure]
        return self.once((condition, measure), lambda: np.asarray(self._measures[measure](result)))

    def measured(self, condition: str) -> dict[str, np.ndarray]:
        """All measures that apply to a condition, f [seeds] each, by name."""
        result, found = self[condition], {}
        for name in (*(result if isinstance(result, Mapping) else ()), *self._measures):
            with contextlib.suppress(AttributeError, KeyError, TypeError, IndexError):  # it is of other conditions
                values = np.asarray(self.measure(condition, name))
                if values.shape == (self.scope.seeds,):
                    found[name] = values
        return found

    @property
    def failed(self) -> dict[str, str]:
        """The reasons of everything that failed, by name."""
        return {name: one_line(error) for name, error in self.errors.items()}

    def attempt(self, name: str, make: Callable[..., T], *arguments: Any) -> T | None:
        """What ``make(*arguments)`` returns; None if it raises, which is recorded under that name."""
        try:
            return make(*arguments)
        except Exception as error:
            self.errors[name] = error
            return None

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What ``compute`` returned for that key before, or returns now; for quantities of several conditions."""
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]
