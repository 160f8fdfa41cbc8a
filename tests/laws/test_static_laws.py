"""Laws of static objects: they compare and hash by value, so equal ones never compile twice."""

import jax
import jax.numpy as jnp
import pytest
from laws.registry import STATIC


@pytest.mark.parametrize("name", STATIC)
def test_equal_objects_are_one_key_and_a_change_is_another(name):
    make, changed = STATIC[name]
    assert make() == make()
    assert hash(make()) == hash(make())
    assert changed() != make()
    traces = []

    def trace(static, x):
        traces.append(static)
        return x + 1

    jitted = jax.jit(trace, static_argnums=0)
    for made in (make(), make(), changed()):
        jitted(made, jnp.zeros(()))
    assert len(traces) == 2
