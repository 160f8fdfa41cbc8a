"""Validation of trees of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import wide_market
from jaxmarket.deep_market import make_population
from jaxmarket.runs import sweeps
from jaxmarket.validation import check_no_nan, check_rows


class Broken:
    """An object whose repr raises an error."""

    def __repr__(self):
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    "leaf", [jnp.ones(2), jnp.ones(()), np.array(["a", "b", "c"]), Broken(), [1.0] * 3, jnp.full((3, 2), jnp.nan)]
)
def test_rows_are_arrays_of_numbers_without_nan(leaf):
    check_rows("agents", {"a": jnp.ones((3, 2)), "keys": jax.random.split(jax.random.key(0), 3)}, 3)
    for function in (
        lambda: check_rows("agents", {"a": leaf}, 3),
        lambda: make_population({"a": leaf}, jnp.ones(3)),
        lambda: wide_market.init({"a": leaf}, jnp.ones((3, 2)), jnp.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"^agents: expected"):
            function()


def test_nan_is_found_in_what_is_known_while_jax_traces():
    known = np.array([1, np.nan])

    @jax.jit
    def traced(value):
        check_no_nan("value", value)
        with pytest.raises(ValueError, match=r"^known: expected numbers, got NaN"):
            check_no_nan("known", known)
        return value

    assert jnp.isnan(traced(known)[1])
    check_no_nan("nothing", None)


def test_more_samples_than_combinations_are_an_error_at_once():
    with pytest.raises(ValueError, match=r"^samples: there are not 1000000 different combinations"):
        sweeps.draw({"clones": [1, 2], "seeds": [1, 2]}, 1_000_000)
