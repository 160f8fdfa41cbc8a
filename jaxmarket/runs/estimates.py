"""Estimates over seeds with confidence intervals, and tables of them."""

import dataclasses
import math
from typing import Any

import numpy as np
from rich.text import Text
from scipy import stats

from jaxmarket.validation import escaped
from jaxmarket.view.text import DataTable

__all__ = [
    "Estimate",
    "ResultTable",
    "by_chance",
    "difference",
    "interquartile_mean",
    "mean",
    "mean_ci",
    "probability_of_improvement",
    "sign_test",
]

_LARGE = 1000
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimate over seeds with its interval; both ends are NaN if there is none, as for a single seed."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return _number(self.value)
        return f"{_number(self.value)} [{_number(self.low)}, {_number(self.high)}]"

    @property
    def plus_minus(self) -> str:
        """The estimate ± the larger side of its interval, as text."""
        if math.isnan(self.low):
            return _number(self.value)
        side = max(self.high - self.value, self.value - self.low)
        if abs(self.value) >= _LARGE:
            return f"{self.value:,.0f} ±{side:,.0f}"
        return f"{self.value:.3f} ±{f'{side:.3f}'.removeprefix('0')}"


def _number(value: float) -> str:
    """Three decimals, none for values in the thousands, a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:.3f}"


def mean_ci(values: Any, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds with Student's confidence interval, ignoring seeds that are NaN: f [...] each.

    Args:
        values: f [..., seeds].
        confidence: level of the interval.

    Returns:
        Mean, lower and upper end. The ends are NaN with fewer than two seeds, the mean with none.
    """
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    count = known.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = np.where(known, values, 0).sum(-1) / count
        squares = np.where(known, (values - middle[..., None]) ** 2, 0).sum(-1)
        side = stats.t.ppf((1 + confidence) / 2, count - 1) * np.sqrt(squares / (count - 1) / count)
    return middle, middle - side, middle + side


def mean(values: Any, confidence: float = 0.95) -> Estimate:
    """Mean of f [seeds] with Student's confidence interval."""
    return Estimate(*(float(x) for x in mean_ci(values, confidence)))


def difference(mine: Any, others: Any, confidence: float = 0.95) -> Estimate:
    """Difference of the means of two sets of seeds, with Welch's interval: variances may differ, seeds are not paired.

    Args:
        mine: f [seeds].
        others: f [seeds], of any number.
        confidence: level of the interval.
    """
    mine, others = np.asarray(mine, np.float64), np.asarray(others, np.float64)
    value = float(mine.mean() - others.mean())
    if min(mine.size, others.size) < 2:
        return Estimate(value, math.nan, math.nan)
    spreads = np.array([x.var(ddof=1) / x.size for x in (mine, others)])
    if not spreads.sum() > 0:
        return Estimate(value, value, value)
    shares = spreads / spreads.sum()
    freedom = 1 / np.sum(shares**2 / (np.array([mine.size, others.size]) - 1))
    side = float(stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(spreads.sum()))
    return Estimate(value, value - side, value + side)


def probability_of_improvement(mine: Any, others: Any, confidence: float = 0.95) -> Estimate:
    """Probability that a seed of ``mine`` exceeds one of ``others``; a tie counts half (Agarwal et al. 2021).

    Args:
        mine: f [seeds].
        others: f [seeds], of any number.
        confidence: level of the percentile bootstrap interval, which resamples both sets.
    """
    mine, others = np.asarray(mine, np.float64), np.asarray(others, np.float64)
    beats = (np.sign(mine[:, None] - others[None, :]) + 1) / 2
    value = float(beats.mean())
    if min(mine.size, others.size) < 2:
        return Estimate(value, math.nan, math.nan)
    rng = np.random.default_rng(0)
    i = rng.integers(mine.size, size=(_RESAMPLES, mine.size))
    j = rng.integers(others.size, size=(_RESAMPLES, others.size))
    drawn = beats[i[:, :, None], j[:, None, :]].mean((1, 2))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))


def sign_test(hits: Any, misses: Any) -> float:
    """The probability of at least as many hits if hits and misses are equally likely: a one-sided sign test.

    Args:
        hits: bool [seeds].
        misses: bool [seeds]; seeds with neither are ties, and do not count.
    """
    better, worse = int(np.sum(hits)), int(np.sum(misses))
    return float(stats.binom.sf(better - 1, better + worse, 0.5))


def by_chance(hits: Any, misses: Any) -> str:
    """The probability of a one-sided `sign_test` with hits and misses bool [seeds], as text."""
    probability = sign_test(hits, misses)
    return "by chance: " + ("under 0.1%" if probability < 0.001 else f"{probability:.1%}")


def interquartile_mean(values: Any, confidence: float = 0.95) -> Estimate:
    """Mean of the middle half of the seeds, with a percentile bootstrap interval (Agarwal et al. 2021).

    Args:
        values: f [seeds]; the result is NaN if one of them is not finite.
        confidence: level of the interval.
    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():  # sorting would place NaN last, and trimming would remove it
        return Estimate(math.nan, math.nan, math.nan)

    def middle(sample: np.ndarray, axis: int = -1) -> np.ndarray:
        return stats.trim_mean(sample, 0.25, axis=axis)

    value = float(middle(values))
    if np.ptp(values) == 0:
        return Estimate(value, value, value)
    interval = stats.bootstrap(
        (values,),
        middle,
        method="percentile",
        confidence_level=confidence,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """A table: equal-keyed rows of text, numbers, and values of type `Estimate`."""

    name: str
    title: str
    rows: list[dict[str, Any]]
    note: str = ""
    shown: bool = True  # whether it is shown on a terminal; files contain it anyway
    aside: tuple[str, ...] = ()  # columns that only files contain
    below: tuple[str, ...] = ()  # columns that move to a list below the table on narrow terminals

    def as_rows(self) -> list[dict[str, Any]]:
        """The rows with plain values: an estimate becomes three columns, also in rows without one."""
        estimates = {name for row in self.rows for name, value in row.items() if isinstance(value, Estimate)}
        return [_flat(row, estimates) for row in self.rows]

    def description(self) -> dict[str, Any]:
        """What else is known of the table: name, title, note, whether it is shown, and the columns that are."""
        columns = [column for column in self.rows[0] if column not in self.aside]
        return {"name": self.name, "title": self.title, "note": self.note, "shown": self.shown, "columns": columns}

    def as_rich(self) -> DataTable:
        """The table for a terminal."""
        table = DataTable(title=self.title, caption=self.note)
        columns = [column for column in self.rows[0] if column not in self.aside]
        for column in columns:
            name = escaped(column)
            header = name.replace(" ", "\n").replace("_", "\n") if len(name) > 8 else name
            text = isinstance(self.rows[0][column], str)
            justify = "left" if text else "right"
            table.add_column(
                Text(header), justify=justify, wrap=24 if text else 0, below=column in self.below, name=name
            )
        for row in self.rows:
            table.add_row(*(_cell(row[column]) for column in columns))
        return table


def _flat(row: dict[str, Any], estimates: set[str]) -> dict[str, Any]:
    flat = {}
    for name, value in row.items():
        if name in estimates:
            ends = (value.value, value.low, value.high) if isinstance(value, Estimate) else (value, None, None)
            flat |= dict(zip((name, f"{name} low", f"{name} high"), ends, strict=True))
        else:
            flat[name] = value.item() if isinstance(value, np.generic) else value
    return flat


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return value.plus_minus
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.1e}" if value != 0 and abs(value) < 1e-3 else _number(float(value))
    return str(value)
