"""Annotations of shapes are executed in tests."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from jaxmarket import auctions, metrics, settlement


@pytest.mark.parametrize(
    "call",
    [
        lambda: auctions.award(jnp.zeros(3), jnp.int32(0), jnp.ones(4, bool)),  # two sizes of one axis
        lambda: auctions.pick(jnp.zeros(()), jnp.zeros(3)),  # floats for a mask
        lambda: metrics.gini(jnp.zeros((2, 3))),  # one axis too many
        lambda: jax.eval_shape(auctions.pick, None, jnp.zeros(3, jnp.int32)),  # traced
        lambda: settlement.lambda_returns(
            jnp.zeros(3), discount=jnp.ones(3), value=jnp.zeros(4), trace_decay=jnp.zeros(3)
        ),
    ],
)
def test_a_wrong_shape_or_dtype_is_found(call):
    with pytest.raises(TypeCheckError):
        call()


def test_vmap_and_scan_see_unbatched_shapes():
    assert jax.vmap(metrics.gini)(jnp.ones((5, 3))).shape == (5,)
    assert jax.vmap(auctions.pick, (None, 0))(jnp.zeros(()), jnp.ones((5, 3), bool)).shape == (5,)
