"""Grids of settings, on seeds that are not reported: their conditions and their table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxmarket.experiments.conditions import Condition
from jaxmarket.experiments.experiment import Table
from jaxmarket.experiments.results import Results

__all__ = ["grid_conditions", "tuning_table"]

Grids = Mapping[str, Sequence[Mapping[str, Any]]]
"""Settings to try, by the name of an agent."""


def grid_conditions(
    grids: Grids, make: Callable[[str, str, Mapping[str, Any]], Iterable[Condition]]
) -> list[Condition]:
    """The conditions of all settings.

    Args:
        grids: the settings.
        make: ``(name, agent, setting) -> conditions``; the first condition has that name.
    """
    return [each for agent, i, setting in _tried(grids) for each in make(_name(agent, i), agent, setting)]


def tuning_table(
    title: str,
    grids: Grids,
    columns: Callable[[Results, str], Mapping[str, Any]],
    cost: Callable[[Mapping[str, Any]], float | None],
    note: str = "",
) -> Table:
    """A table of a full run, with a row for each setting and the best one of each agent.

    Args:
        title: of the table.
        grids: the settings.
        columns: ``(results, name of the condition) -> cells by heading``.
        cost: of a row; the row with the lowest cost is the best. None excludes a row.
        note: below the table.
    """
    settings = dict.fromkeys(name for _, _, setting in _tried(grids) for name in setting)

    def rows(results: Results) -> Iterable[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"arm": agent}
            | {name.replace("_", " "): setting.get(name) for name in settings}
            | dict(columns(results, _name(agent, i)))
            for agent, i, setting in (_tried(grids) if results.scope.full else ())
        ]
        able = [row for row in found if cost(row) is not None]
        best = {agent: min((r for r in able if r["arm"] == agent), key=cost, default=None) for agent in grids}  # type: ignore[arg-type]
        return [row | {"best": row is best[row["arm"]]} for row in found]

    return Table("tuning", title, rows, note)


def _tried(grids: Grids) -> list[tuple[str, int, Mapping[str, Any]]]:
    return [(agent, i, setting) for agent, grid in grids.items() for i, setting in enumerate(grid)]


def _name(agent: str, i: int) -> str:
    return f"tuning-{agent}-{i}"
