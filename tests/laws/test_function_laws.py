"""Laws of every public pure function: each is stated once, for all entries of the registry."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import CASES, EXCEPTIONS, MODULES
from thinned import thinned

from jaxmarket.types import real

every_case = pytest.mark.parametrize("name", CASES)
# They compile for long, and consist of others that have the same laws to keep.
LONG = (
    "deep_market.forward",
    "deep_market.run",
    "deep_market.step",
    "deep_market.turnover",
    "evaluation.first_episodes",
    "rollouts.fresh_rollout",
    "rollouts.rollout",
    "welfare.price_stability",
    "wide_market.run",
    "wide_market.step",
)
RUNS = ("deep_market.run", "welfare.price_stability", "wide_market.run")


def example(case, seed=0):
    """Arguments as arrays of JAX's, whole numbers in 32 bits."""

    def array(x):
        return x if isinstance(x, jax.Array) else jnp.asarray(x, np.int32 if np.asarray(x).dtype.kind == "i" else None)

    return jax.tree.map(array, case.arguments(np.random.default_rng(seed), case.static()))


def close(case, one, other):
    chex.assert_trees_all_equal_shapes_and_dtypes(one, other)
    chex.assert_trees_all_close(unwrapped(one), unwrapped(other), rtol=case.approximate, atol=case.approximate)


def unwrapped(tree):
    """Typed keys as their words, which can be compared."""
    is_key = functools.partial(jnp.issubdtype, arg2=jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x.dtype) else x, tree)


@pytest.mark.parametrize("name", thinned(CASES, lambda name: name not in LONG))
def test_jit_equals_eager_and_vmap_a_loop_and_both_compile_once(name):
    case, examples = CASES[name], [example(CASES[name], seed) for seed in range(3)]
    chex.clear_trace_counter()  # it tells functions apart by their names
    call = chex.assert_max_traces(case.call, n=2)  # one for jit, one for vmap; equal static arguments are made anew
    jitted = jax.jit(call, static_argnums=0)
    alone = [jitted(case.static(), *args) for args in examples]
    close(case, case.call(case.static(), *examples[0]), alone[0])
    together = jax.jit(jax.vmap(functools.partial(call, case.static())))(
        *jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)
    )
    for i, one in enumerate(alone):
        close(case, jax.tree.map(lambda x, i=i: x[i], together), one)


def dtypes(case):
    made = jax.eval_shape(functools.partial(case.call, case.static()), *example(case))
    return [leaf.dtype for leaf in jax.tree.leaves(made)]


@pytest.mark.parametrize("name", thinned(CASES, lambda name: name not in RUNS))
def test_floats_follow_x64_and_other_types_do_not(name):
    single = dtypes(CASES[name])
    with jax.enable_x64(True):
        double, float64 = dtypes(CASES[name]), real()
    assert float64 == np.float64
    for one, other in zip(single, double, strict=True):
        assert (one, other) == (np.float32, np.float64) if jnp.issubdtype(one, jnp.floating) else one == other


def traced_with_checks(call, arguments):
    with jax.debug_key_reuse(True):
        jax.make_jaxpr(jax.jit(call))(*arguments)


@every_case
def test_no_key_is_used_twice(name):
    case = CASES[name]
    traced_with_checks(functools.partial(case.call, case.static()), example(case))


def test_a_key_that_is_used_twice_is_noticed():
    with pytest.raises(jax.errors.KeyReuseError):
        traced_with_checks(lambda key: jax.random.uniform(key) + jax.random.normal(key), (jax.random.key(0),))


def test_every_public_function_has_a_case_or_a_reason():
    functions = {
        value: f"{module.__name__.split('.')[-1]}.{name}"
        for module in reversed(MODULES)
        for name in module.__all__
        if inspect.isfunction(value := getattr(module, name))
    }
    missing = set(functions.values()) - {*CASES, *EXCEPTIONS}
    assert not missing, "add a Case to tests/laws/registry.py, or say in EXCEPTIONS why there is none"
    assert set(EXCEPTIONS) <= set(functions.values())
