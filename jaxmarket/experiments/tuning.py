"""Grids of settings, on seeds that are not reported: their conditions and their table."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxmarket.experiments.conditions import Condition
from jaxmarket.experiments.experiment import Column, Table, by_condition
from jaxmarket.experiments.results import Results

__all__ = ["grid_conditions", "tuning_table"]

Setting = Mapping[str, Any]
Grids = Mapping[str, Sequence[Setting]]
"""Settings to try, by the name of an agent."""


def _tried(grids: Grids) -> dict[str, tuple[str, Setting]]:
    """Agent and setting by the name of the condition."""
    return {f"tuning-{agent}-{i}": (agent, setting) for agent, grid in grids.items() for i, setting in enumerate(grid)}


def grid_conditions(grids: Grids, make: Callable[[str, str, Setting], Iterable[Condition]]) -> list[Condition]:
    """The conditions of all settings.

    Args:
        grids: the settings.
        make: ``(name, agent, setting) -> conditions``; the first condition has that name.
    """
    return [each for name, (agent, setting) in _tried(grids).items() for each in make(name, agent, setting)]


def tuning_table(
    title: str, grids: Grids, columns: Mapping[str, Column], cost: Callable[[dict[str, Any]], Any], note: str = ""
) -> Table:
    """A table of a full run, with a row for each setting and the best one of each agent.

    Args:
        title: of the table.
        grids: the settings.
        columns: measurements by heading, as of `by_condition`.
        cost: of a row, a number; the row with the lowest cost is the best. NaN or None excludes a row.
        note: below the table.
    """
    tried = _tried(grids)
    headings = dict.fromkeys(heading for _, setting in tried.values() for heading in setting)

    def rows(results: Results) -> Iterable[dict[str, Any]]:
        found, best = [], {}
        for measured in by_condition(columns, names=list(tried))(results) if results.scope.full else ():
            agent, setting = tried[measured.pop("condition")]
            row = {"arm": agent} | {name.replace("_", " "): setting.get(name) for name in headings} | measured
            found.append(row)
            spent = cost(row)
            if spent is not None and spent < best.get(agent, (math.inf, row))[0]:
                best[agent] = spent, row
        return [row | {"best": any(row is chosen for _, chosen in best.values())} for row in found]

    return Table("tuning", title, rows, note)
