"""Combinations: a few in the default run, all of them in the slow one."""

from collections.abc import Callable, Iterable

import pytest


def thinned(cases: Iterable, kept: Callable[..., bool]) -> list:
    """The cases as parameters, those marked slow for which ``kept(*case)`` is False."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=[pytest.mark.slow] * (not kept(*row))) for row in rows]
