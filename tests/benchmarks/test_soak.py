"""`benchmarks.soak` fails where it should."""

import math

import pytest

from benchmarks import soak

SOUND = {
    "money": 5.0, "worst": 0.01, "nonfinite": 0.0, "arrays": 25.0, "resident_mb": 500.0, "cpu_per_step": 1e-6,
}  # fmt: skip


def points(**last):
    """Ten points of a sound market, but for the last three."""
    rows = [SOUND | {"steps": 100.0 * (i + 1)} for i in range(10)]
    return [*rows[:7], *(row | last for row in rows[7:])]


def test_a_sound_market_passes():
    assert soak.failures(points()) == []
    assert soak.failures(points(arrays=20.0, resident_mb=510.0, cpu_per_step=2e-6)) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"worst": 1.5}, "money changed in one call by 1.5 times"),
        ({"worst": math.nan}, "money changed in one call"),
        ({"nonfinite": 1.0}, "an account was not finite before step 800"),
        ({"money": math.nan}, "an account was not finite"),
        ({"arrays": 26.0}, "arrays alive grew from 25 to 26"),
        ({"resident_mb": 600.0}, "memory grew from 500 to 600 MB"),
        ({"cpu_per_step": 1e-5}, "10.0 times as much processor time"),
        ({"goods": 1.0}, "1 goods appeared"),
    ],
)
def test_what_fails_is_said(fault, said):
    assert any(said in failure for failure in soak.failures(points(**fault)))


@pytest.mark.full
def test_faults_that_are_built_in_are_noticed():
    """A hundredth of every sale destroyed, an account that becomes NaN, an array kept alive in every call."""
    assert soak.self_check(seconds=0.5) == []
