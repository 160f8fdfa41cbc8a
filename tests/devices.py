"""Comparisons whose tolerance depends on the device that runs the tests."""

import jax
import numpy as np


def assert_exact(got, wanted):
    """Equal numbers on CPUs; within a few roundings on accelerators, where powers need not be exact."""
    if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def tolerance(on_cpu, elsewhere):
    """The tolerance for this device."""
    return on_cpu if jax.default_backend() == "cpu" else elsewhere
