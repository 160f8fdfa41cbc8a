"""Claims about measurements, of four kinds, and verdicts on them.

The kinds are the only meanings of "confirmed": two conditions are `separated`, a number holds on `every_seed` or on a
`share_of_seeds`, or a mean is `within` bounds. Every claim has a text, a sentence without a full stop, and may have
``evidence``, a function of the results that returns what else the verdict says.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jaxmarket.experiments.results import FailedConditionError, Results, one_line
from jaxmarket.runs.estimates import Estimate, by_chance, difference, interquartile_mean, mean

__all__ = [
    "Claim",
    "Evidence",
    "Standing",
    "Values",
    "Verdict",
    "at",
    "every_seed",
    "majority",
    "not_separated",
    "separated",
    "share_of_seeds",
    "tally",
    "within",
]

Standing = Literal["confirmed", "not confirmed", "too short to tell", "not testable"]
Kind = Literal["separated", "every_seed", "share_of_seeds", "within"]
Values = Callable[[Results], Any]
"""Numbers of an experiment, one per seed: f [seeds]."""
Bound = float | Values | None
Evidence = Callable[[Results], str]
"""What else a verdict says, as text."""

_ENOUGH = 0.75


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a claim is confirmed, and the number that decides it.

    Attributes:
        claim: the claim.
        kind: the test that decides it.
        standing: the outcome. A quick run never rejects a claim: it is "too short to tell".
        number: the number that decides it; None if it cannot be tested.
        low, high: its 95% interval, or the lowest and highest seed; None if there is none.
        evidence: a sentence with the numbers.
    """

    claim: str
    kind: Kind
    standing: Standing
    number: float | None
    low: float | None
    high: float | None
    evidence: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim that an experiment tests.

    Attributes:
        text: the claim.
        kind: the test that decides it.
        test: whether the results confirm it, the number that decides it with its interval, and the evidence.
        values: what it compares, for a check of names before anything is computed.
        evidence: what else to say.
    """

    text: str
    kind: Kind
    test: Callable[[Results], tuple[bool, Estimate, str]]
    values: tuple[Any, ...] = ()
    evidence: Evidence | None = None

    def verdict(self, results: Results) -> Verdict:
        """The verdict on the claim; "not testable" if a condition that it needs has failed, or the test itself."""
        try:
            holds, number, said = self.test(results)
            said += "" if self.evidence is None else f"; {self.evidence(results)}"
        except Exception as error:
            if not isinstance(error, FailedConditionError):
                results.errors[f"claim {self.text!r}"] = error
            return Verdict(self.text, self.kind, "not testable", None, None, None, one_line(error))
        standing = "confirmed" if holds else "too short to tell" if results.scope.quick else "not confirmed"
        value, low, high = (float(x) if np.isfinite(x) else None for x in dataclasses.astuple(number))
        return Verdict(self.text, self.kind, standing, value, low, high, said)


@dataclasses.dataclass(frozen=True)
class at:  # noqa: N801  it is used as a function
    """The values of a measure of a condition: f [seeds].

    Attributes:
        condition: its name.
        measure: the measure's name, or that of an array of a `Compute` condition.
    """

    condition: str
    measure: str

    def __call__(self, results: Results) -> np.ndarray:
        """The values."""
        return results.measure(self.condition, self.measure)


def separated(
    text: str,
    first: Values,
    second: Values,
    *,
    lower: bool = False,
    reached: Values | None = None,
    evidence: Evidence | None = None,
) -> Claim:
    """The mean of ``first`` is higher than that of ``second``: Welch's 95% interval of the difference excludes zero.

    Args:
        first, second: values of two conditions, f [seeds].
        lower: whether the claim is that the first mean is lower.
        reached: whether a seed of the first condition counts, bool [seeds]; the claim is denied if fewer than three
            quarters do. For steps to a level, of which only a lower bound is known where a seed never reaches it.
    """

    def test(results: Results) -> tuple[bool, Estimate, str]:
        mine, others = _floats(first(results)), _floats(second(results))
        gap = difference(mine, others)
        holds = gap.high < 0 if lower else gap.low > 0
        said = f"{interquartile_mean(mine)} against {interquartile_mean(others)}, difference of the means {gap}"
        if np.array_equal(mine, others):
            said += "; equal on every seed"
        arrived = np.ones(len(mine), bool) if reached is None else np.asarray(reached(results), bool)
        if arrived.mean() < _ENOUGH:
            return False, gap, f"{said}; only {tally(arrived)} seeds of the first arrive, required {_ENOUGH:.0%}"
        return bool(holds), gap, said

    return Claim(text, "separated", test, (first, second, reached), evidence)


def every_seed(
    text: str, values: Values, *, at_least: Bound = None, at_most: Bound = None, evidence: Evidence | None = None
) -> Claim:
    """Every value lies within the bounds.

    Args:
        values: f [seeds].
        at_least, at_most: bounds, numbers or values; at least one of them.
    """
    _check_bounds(text, at_least, at_most)

    def test(results: Results) -> tuple[bool, Estimate, str]:
        found, low, high = _bounded(results, values, at_least, at_most)
        holds = (found >= low) & (found <= high)
        worst = found[np.minimum(found - low, high - found).argmin()]  # NaN is the least
        number = Estimate(float(worst), float(found.min()), float(found.max()))
        return bool(holds.all()), number, f"{tally(holds)} seeds, {_range(found)}, required {_required(low, high)}"

    return Claim(text, "every_seed", test, (values, at_least, at_most), evidence)


def share_of_seeds(
    text: str,
    values: Values,
    *,
    share: float,
    at_least: Bound = None,
    at_most: Bound = None,
    above: Values | None = None,
    below: Values | None = None,
    evidence: Evidence | None = None,
) -> Claim:
    """A share of the seeds lies within the bounds, or exceeds (is less than) the same seed of another condition.

    The evidence of a comparison states its probability by chance (`by_chance`).

    Args:
        values: f [seeds].
        share: of the seeds, in (0, 1].
        at_least, at_most: bounds, numbers or values.
        above, below: values of another condition on the same seeds, f [seeds]; at most one of them.
    """
    _check_bounds(text, at_least, at_most, above, below)

    def test(results: Results) -> tuple[bool, Estimate, str]:
        found, low, high = _bounded(results, values, at_least, at_most)
        holds, said = (found >= low) & (found <= high), f"required {share:.0%}"
        for other, sign in ((above, 1), (below, -1)):
            if other is not None:
                gap = sign * (found - _floats(other(results)))
                holds &= gap > 0
                said += "; " + by_chance(gap > 0, gap < 0)
        if (finite := found[np.isfinite(found)]).size:
            said += "; " + _range(finite)
        number = float(holds.mean())
        return number >= share, Estimate(number, np.nan, np.nan), f"{tally(holds)} seeds, {said}"

    return Claim(text, "share_of_seeds", test, (values, at_least, at_most, above, below), evidence)


def within(
    text: str,
    values: Values,
    *,
    at_least: Bound = None,
    at_most: Bound = None,
    estimate: Callable[[Any], Estimate] = interquartile_mean,
    interval: bool = False,
    evidence: Evidence | None = None,
) -> Claim:
    """The interquartile mean of the values, or another estimate, lies within the bounds.

    Args:
        values: f [seeds].
        at_least, at_most: bounds, numbers or values; at least one of them.
        estimate: of the mean with its interval; the interquartile mean by default.
        interval: whether its whole interval must lie within the bounds.
    """
    _check_bounds(text, at_least, at_most)

    def test(results: Results) -> tuple[bool, Estimate, str]:
        found, low, high = _bounded(results, values, at_least, at_most)
        number = estimate(found) if np.isfinite(found).all() else Estimate(np.nan, np.nan, np.nan)
        ends = (number.low, number.high) if interval else (number.value, number.value)
        holds = ends[0] >= np.max(low) and ends[1] <= np.min(high)
        which = "interquartile mean" if estimate is interquartile_mean else "mean"
        return bool(holds), number, f"{which} {number}, required {_required(low, high)}"

    return Claim(text, "within", test, (values, at_least, at_most), evidence)


def not_separated(
    text: str, first: Values, second: Values, *, higher: bool = False, evidence: Evidence | None = None
) -> Claim:
    """The mean of ``first`` is `within` half the width of Welch's 95% interval of that of ``second``.

    Then `separated` is not confirmed. Few seeds confirm it easily, so it is for controls only.

    Args:
        first, second: values of two conditions, f [seeds].
        higher: whether only a higher mean of ``first`` counts as a difference.
    """

    def bound(sign: int, results: Results) -> float:
        gap = difference(first(results), second(results))
        return float(_floats(second(results)).mean() + sign * (gap.high - gap.value))

    def said(results: Results) -> str:
        gap = f"difference of the means {difference(first(results), second(results))}"
        return gap if evidence is None else f"{gap}; {evidence(results)}"

    low = None if higher else lambda results: bound(-1, results)
    return within(text, first, at_least=low, at_most=lambda results: bound(1, results), estimate=mean, evidence=said)


def _check_bounds(text: str, *bounds: Any) -> None:
    if all(bound is None for bound in bounds):
        raise ValueError(f"claims: {text!r} has no bound; give at_least or at_most")


def _floats(values: Any) -> np.ndarray:
    return np.asarray(values, np.float64)


def _bounded(results: Results, values: Values, at_least: Bound, at_most: Bound) -> tuple[np.ndarray, Any, Any]:
    """The values f [seeds], and their lowest and highest allowed value, for all seeds or for each."""
    low, high = (bound(results) if callable(bound) else bound for bound in (at_least, at_most))
    found = np.atleast_1d(_floats(values(results)))
    return found, _floats(-np.inf if low is None else low), _floats(np.inf if high is None else high)


def _required(low: Any, high: Any) -> str:
    bounds = (("≥", low, np.max), ("≤", high, np.min))
    return " and ".join(
        f"{sign} {_number(strictest(bound))}" for sign, bound, strictest in bounds if np.isfinite(bound).all()
    )


def _number(value: float) -> str:
    return f"{value:.4g}"


def _range(values: np.ndarray) -> str:
    low, high = _number(values.min()), _number(values.max())
    return low if np.ptp(values) == 0 else f"{low} to {high}"


def tally(hits: np.ndarray) -> str:
    """Number of hits and of entries, as ``13/16``."""
    return f"{int(np.sum(hits))}/{len(hits)}"


def majority(seeds: int) -> float:
    """The smallest share of that many seeds that is more than half, for `share_of_seeds`."""
    return (seeds // 2 + 1) / seeds
