"""Contract checks for your own auctions, environments and learners, to be called in your tests.

Each check runs the object as a market does, and raises an `AssertionError` that states the violation and the remedy.
A check takes seconds, mostly for compilation::

    >>> from jaxmarket.auctions import VICKREY
    >>> check_mechanism(VICKREY, truthful=True, conserving=False)
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.auctions import Mechanism, award, clear, pick
from jaxmarket.environments.adapter import Adapter, Step, adapt, mismatch, owns
from jaxmarket.learners.protocol import EXPERIENCE_AXES, UNBOUND, Experience, Hyperparameters, Learner
from jaxmarket.policies import BidPolicy, KumaraswamyHead, ValueHead, ValueNetwork, mlp
from jaxmarket.types import Array, Outcome, PyTree, real, tree_select

__all__ = ["check_environment", "check_learner", "check_mechanism", "check_pure"]

_PURE = "it must be a pure function of its arguments, written in jax.numpy (jnp.where in place of if)"


def check_pure(name: str, function: Callable[..., Any], *batch: PyTree, entries: int = 8) -> Any:
    """Check that a function gives the same results eager, under ``jit`` and under ``jit(vmap)``.

    Args:
        name: of the function, for messages.
        function: of unbatched arguments.
        batch: its arguments, with one more leading axis.
        entries: the number of entries of the batch that are also computed eagerly and under ``jit``.

    Returns:
        The results of the whole batch.

    Raises:
        AssertionError: the function fails, or its results differ.
    """
    results = _attempt(f"{name} under vmap", _PURE, jax.jit(jax.vmap(function)), *batch)
    for how, call in (("eager", function), ("jit", jax.jit(function))):
        for i in range(min(entries, len(jax.tree.leaves(batch)[0]))):
            args, expected = jax.tree.map(lambda x, i=i: x[i], (batch, results))
            message = f"{name}: {how} differs from jit(vmap); {_PURE}"
            found = _attempt(f"{name}, {how}", _PURE, call, *args)
            _require_that(message, chex.assert_trees_all_close, found, expected, rtol=1e-5, atol=1e-6)
    return results


def check_mechanism(
    mechanism: Mechanism, *, conserving: bool | None = None, truthful: bool = False, bidders: int = 4
) -> None:
    """Check that a mechanism's price and payout are sound functions of an outcome.

    Both must be finite scalars of the bids' dtype, equal under ``jit``, ``vmap`` and eagerly, and independent of the
    bids of ineligible bidders (which may be NaN). The outcomes tried include ties, lone bidders, and winners that were
    outbid (exploration).

    Args:
        mechanism: the mechanism.
        conserving: whether the payout equals the price; not checked if None.
        truthful: check that in one isolated auction no bidder gains by a bid other than its value.
        bidders: A, at least 2. Bids lie in (0, 1].

    Raises:
        AssertionError: the mechanism violates one of these conditions.
    """
    outcomes = jax.jit(_outcomes, static_argnums=(0, 1))(64, bidders)
    price, payout = (_amounts(f"{mechanism.name}.{f}", getattr(mechanism, f), outcomes) for f in ("price", "payout"))
    gap = np.abs(price - payout).max()
    _require(
        conserving is None or conserving == (gap <= 1e-6),
        f"{mechanism.name}: price and payout differ by up to {gap:.3g}, but conserving={conserving}; "
        "use one function of the outcome for both, or change the argument",
    )
    if truthful:
        _check_truthful(mechanism, bidders)


def check_environment(env: Any, params: PyTree = None, *, steps: int = 64, instances: int = 4) -> None:
    """Check that a society can run on an environment, by random legal actions through `adapt`.

    The environment must run under ``jit``, ``vmap`` and ``scan``, keep the shapes and
    dtypes of observation and state, give the same result for the same key, return finite scalars
    (reward, terminated, truncated, duration) and a legal mask bool [P] with at least one legal action,
    and leave the reset after an episode to the caller.

    Args:
        env: a gymnax-style environment, or its `Adapter`.
        params: its parameters; ``default_params`` if None.
        steps, instances: T and B of the random rollout; the end of an episode is checked only if it is within T.

    Raises:
        AssertionError: the environment violates one of these conditions.
    """
    try:
        adapter = adapt(env)
        adapter.check(params)
    except ValueError as error:
        raise AssertionError(str(error)) from error
    params = adapter.default_params if params is None else params
    name, key = f"env {adapter.name}", jax.random.key(0)
    keys = jax.random.split(key, instances)
    play = jax.jit(jax.vmap(functools.partial(_play, adapter, params=params, steps=steps)))
    first, fresh, rows, legal = _attempt(f"{name}: jit(vmap(scan)) of random actions", _PURE, play, keys)
    _require(
        bool(legal.any(-1).all()), f"{name}: no action was legal in some state; keep one legal, or end the episode"
    )
    for field, values in (("observation", rows.obs), ("reward", rows.reward)):
        message = f"{name}: a NaN or infinite {field}; return finite numbers"
        _require_that(message, chex.assert_tree_all_finite, values)
    if rows.module_rewards is not None:
        parts = bool(jnp.allclose(rows.module_rewards.sum(-1), rows.reward, 1e-5, 1e-5))
        _require(parts, f"{name}: info['module_rewards'] do not add up to the reward; return their sum as the reward")
    _require(bool((rows.duration >= 1).all()), f"{name}: a duration below 1; info['duration'] counts environment steps")

    alone = jax.jit(functools.partial(_first_step, adapter))(keys[0], params)
    pairs = zip(_numbers(alone), _numbers(jax.tree.map(lambda x: x[0], first)), strict=True)
    _require(
        all(np.allclose(x, y, 1e-4, 1e-4, equal_nan=True) for x, y in pairs),
        f"{name}: the same key gave two different steps, one under vmap and one without; draw all randomness from the "
        "key (not from numpy or random), and keep no state between calls",
    )
    if not _reports_its_reset(adapter, fresh, params):
        _check_no_reset(name, fresh, rows)


def check_learner(learner: Learner, obs_shape: tuple[int, ...] = (4,), *, rows: int = 128, members: int = 2) -> None:
    """Check that a learner is a local update rule that training can map over modules.

    ``init`` and ``update`` must run under ``jit`` and ``vmap``; the new state must have the shapes and dtypes of the
    old one, and a field ``params`` (finite) that the policy can apply. The new state of a module must depend on its own
    utility [R, N] and not on another module's: bit-identical whatever the other module earned, with a gradient of
    exactly zero.

    Args:
        learner: the learner; without a policy, it is bound to a small one.
        obs_shape: shape of one encoded observation.
        rows: N, auctions in the rollout; a multiple of the learner's minibatch.
        members: R, bidders per module.

    Raises:
        AssertionError: the learner violates one of these conditions.
    """
    name, modules = type(learner).__name__, 2
    static = "make the learner a frozen dataclass: it is a static argument, and equal ones must not compile twice"
    _attempt(f"{name}: hash", static, hash, learner)
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(lambda learner, x: x, n=1), static_argnums=0)
    once(learner, 0.0)
    _require_that(f"{name}: it does not compare by value; {static}", once, copy.copy(learner), 0.0)
    if learner.policy is UNBOUND:
        head = ValueHead() if getattr(learner, "estimates_values", False) else KumaraswamyHead(0.0, 1.0)
        learner = _attempt(f"{name}.bind", _PURE, learner.bind, BidPolicy(mlp(8), head), ValueNetwork(mlp(8)))
    key_init, key_obs, key_bid, key_win, key_money = jax.random.split(jax.random.key(0), 5)
    obs = jax.random.normal(key_obs, (rows, *obs_shape), real())
    init, keys = jax.jit(jax.vmap(learner.init, (0, None))), jax.random.split(key_init, modules)
    state = _attempt(f"{name}.init under jit and vmap", _PURE, init, keys, obs[0])
    _require(hasattr(state, "params"), f"{name}: the state of init has no field `params`; keep the policy's there")

    def draw(params: PyTree, keys: Array) -> Array:
        return jax.vmap(lambda obs, key: learner.policy.apply(params, obs).sample(key, (members,)))(obs, keys)

    keys, remedy = jax.random.split(key_bid, (modules, rows)), "state.params must be the parameters of learner.policy"
    bids = _attempt(f"{name}.policy", remedy, jax.jit(jax.vmap(draw)), state.params, keys).swapaxes(1, 2)
    winner = jax.random.randint(key_win, (rows, 1), 0, modules * members)
    won = (winner == jnp.arange(modules * members)).reshape(rows, modules, members).transpose(1, 2, 0)
    price, utility, change = jax.random.normal(key_money, (3, *won.shape), real())
    price, utility = price * won, utility * won
    hyper = Hyperparameters().with_learner(learner).replace(learning_rate=1e-2)
    count, progress = jnp.zeros((), jnp.int32), jnp.zeros((), real())

    @jax.jit
    def update(utility: Array, direction: Array) -> tuple[PyTree, PyTree, PyTree]:
        def new_numbers(utility: Array) -> tuple[list[Array], PyTree]:
            experience = Experience(
                obs=obs, bid=bids, eligible=jnp.ones(bids.shape, bool), won=won, price=price, utility=utility
            )
            learn = jax.vmap(lambda s, e: learner.update(s, e, hyper, count, progress), (0, EXPERIENCE_AXES))
            after, metrics = learn(state, experience)
            return [x for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)], (after, metrics)

        _, slope, (after, metrics) = jax.jvp(new_numbers, (utility,), (direction,), has_aux=True)
        return after, metrics, slope

    mine, theirs = (change * won).at[1:].set(0), change.at[0].set(0)
    after, metrics, slope = _attempt(f"{name}.update under jit and vmap", _PURE, update, utility, theirs)
    _require_same_types(f"{name}: the state after an update", state, after)
    for path, value in jax.tree_util.tree_leaves_with_path(metrics):
        metric = f"{name}: metric {jax.tree_util.keystr(path)}"
        _require(value.shape == (modules,), f"{metric}: expected a scalar, got shape {value.shape[1:]}; reduce it")
    message = f"{name}: NaN or infinite parameters after one update; check its logarithms and divisions"
    _require_that(message, chex.assert_tree_all_finite, after.params)

    def unmoved(direction: Array) -> bool:
        # The whole state: the size of Adam's first step is independent of the utility, its moments are not.
        pairs = zip(_numbers(after), _numbers(update(utility + direction, direction)[0]), strict=True)
        return all(np.array_equal(x[0], y[0], equal_nan=True) for x, y in pairs)

    _require(not unmoved(mine), f"{name}: the update does not react to the module's own utility; learn from it")
    local = "use only the module's own experience (no global variable, no batching rule)"
    _require(unmoved(theirs), f"{name}: a module's update depends on another module's utility; {local}")
    # A square root at zero (Adam's, of an unused weight) has slope 0 * inf = NaN; the test of bits above covers it.
    leak = sum(float(jnp.abs(jnp.where(jnp.isnan(leaf[0]), 0, leaf[0])).sum()) for leaf in slope)
    _require(leak == 0, f"{name}: a module's update has a gradient {leak:.3g} in another module's utility; {local}")


def _outcomes(count: int, bidders: int) -> Outcome:
    """Auctions [count] with ties and ineligible bidders, every second one won by a random bidder."""

    def auction(key: Array, explored: Array) -> Outcome:
        key_bid, key_eligible, key_one, key_win = jax.random.split(key, 4)
        bids = jax.random.randint(key_bid, (bidders,), 1, 9).astype(real()) / 8
        eligible = jax.random.bernoulli(key_eligible, 0.5, (bidders,))
        eligible = eligible.at[jax.random.randint(key_one, (), 0, bidders)].set(True)
        winner = jnp.where(explored, pick(jax.random.uniform(key_win), eligible), clear(bids, key_win, eligible).winner)
        return award(bids, winner, eligible)

    return jax.vmap(auction)(jax.random.split(jax.random.key(0), count), jnp.arange(count) % 2 == 0)


def _amounts(name: str, rule: Callable[[Outcome], Array], outcomes: Outcome) -> np.ndarray:
    """The amounts of a price or payout rule for each outcome, after all checks. f [count]."""
    first, dtype = jax.tree.map(lambda x: x[0], outcomes), outcomes.bids.dtype
    kind = _attempt(f"{name} under jit", _PURE, jax.eval_shape, rule, first)
    scalar = getattr(kind, "shape", None) == () and getattr(kind, "dtype", None) == dtype
    _require(scalar, f"{name}: expected one amount, a scalar of the bids' dtype {dtype}, got {kind}; return that")
    vmapped = jax.jit(jax.vmap(rule))
    amounts = np.asarray(_attempt(f"{name} under vmap", _PURE, vmapped, outcomes))
    message = f"{name}: NaN or infinite for some outcome; return a finite amount for every sale"
    _require_that(message, chex.assert_tree_all_finite, amounts)
    check_pure(name, rule, outcomes)
    for junk in (jnp.nan, 1e3, -1e3):
        other = vmapped(outcomes.replace(bids=jnp.where(outcomes.eligible, outcomes.bids, junk)))
        masked = np.array_equal(np.asarray(other), amounts)
        _require(masked, f"{name}: depends on the bid of an ineligible bidder; mask it: where(o.eligible, o.bids, 0)")
    return amounts


def _check_truthful(mechanism: Mechanism, bidders: int) -> None:
    def utility(bid: Array, value: Array, rivals: Array) -> Array:
        outcome = clear(jnp.concatenate([bid[None], rivals]))
        return jnp.where(outcome.winner == 0, value - mechanism.price(outcome), 0)

    value, deviation, *others = jax.random.uniform(jax.random.key(1), (bidders + 1, 2048), real())
    rivals, utility = jnp.stack(others, -1), jax.jit(jax.vmap(utility))
    gain = utility(deviation, value, rivals) - utility(value, value, rivals)
    best = int(gain.argmax())
    _require(
        bool(gain[best] <= 1e-6),
        f"{mechanism.name}: not truthful: against {np.round(rivals[best], 3)} a bidder of value {value[best]:.3f} "
        f"gains {gain[best]:.3f} by bidding {deviation[best]:.3f}; charge the winner the least bid that would have won",
    )


def _some_action(adapter: Adapter, key: Array, legal: Array) -> Array:
    """A random legal action."""
    if adapter.box is None:
        return pick(jax.random.uniform(key), legal)
    low, high = (jnp.array(bound) for bound in (adapter.box.low, adapter.box.high))
    uniform = jax.random.uniform(key, low.shape)
    inside = jnp.where(jnp.isfinite(low + high), low + (high - low) * uniform, 2 * uniform - 1)
    return adapter.to_action(inside)


def _first_step(adapter: Adapter, key: Array, params: PyTree) -> tuple[Array, PyTree, Step]:
    key_reset, key_action, key_step = jax.random.split(key, 3)
    obs, state = adapter.reset(key_reset, params)
    action = _some_action(adapter, key_action, adapter.legal(state, params))
    return obs, state, adapter.step(key_step, state, action, params)


def _play(adapter: Adapter, key: Array, *, params: PyTree, steps: int) -> tuple[Any, PyTree, Step, Array]:
    """Random legal actions: a `_first_step`; then [steps] of first states, steps, and legal masks."""

    def random_step(state: PyTree, key: Array) -> tuple[PyTree, tuple[PyTree, Step, Array]]:
        key_action, key_step, key_reset = jax.random.split(key, 3)
        legal = adapter.legal(state, params)
        after = adapter.step(key_step, state, _some_action(adapter, key_action, legal), params)
        _, fresh = adapter.reset(key_reset, params)
        following = tree_select(after.terminated | after.truncated, fresh, after.env_state)
        return following, (fresh, after, legal)

    _, state = adapter.reset(key, params)
    return _first_step(adapter, key, params), *jax.lax.scan(random_step, state, jax.random.split(key, steps))[1]


def _reports_its_reset(adapter: Adapter, fresh: PyTree, params: PyTree) -> bool:
    """Whether a bare ``step`` resets and returns the final observation."""
    if owns(adapter.env, "step_env"):
        return False
    state, key = jax.tree.map(lambda x: x[0, 0], fresh), jax.random.key(0)
    action = _some_action(adapter, key, adapter.legal(state, params))
    return "final_observation" in adapter.env.step(key, state, action, params)[-1]


def _check_no_reset(name: str, fresh: PyTree, rows: Step) -> None:
    """A step resets by itself if states equal first states at the end of every episode and at no other time."""
    done = np.asarray(rows.terminated | rows.truncated).reshape(-1)
    new = np.ones(done.shape, bool)
    for starts, states in zip(_numbers(fresh), _numbers(rows.env_state), strict=True):
        if (starts == starts[0, 0]).all():  # equal in all first states, such as a clock at zero
            new &= (states == starts[0, 0]).reshape(done.size, -1).all(-1)
    _require(
        not done.any() or bool(done.all()) or bool((new != done).any()),
        f"{name}: the step that ends an episode returns the first state of the next one; let step_env return the last "
        "state itself, or let step return the last observation in info['final_observation']",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _require_that(message: str, assertion: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Run an assertion of chex, with a message of ours."""
    try:
        assertion(*args, **kwargs)
    except AssertionError as error:
        raise AssertionError(message) from error


def _attempt(what: str, remedy: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise AssertionError(f"{what} failed with {type(error).__name__}: {reason}; {remedy}") from error


def _require_same_types(what: str, before: PyTree, after: PyTree) -> None:
    """Structure, shapes and dtypes must agree."""
    _require_that(f"{what} {mismatch(before, after)}", chex.assert_trees_all_equal_shapes_and_dtypes, before, after)


def _numbers(tree: PyTree) -> list[np.ndarray]:
    """The leaves as NumPy arrays, typed keys as their bits."""
    keyed = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(tree)]
    leaves = zip(jax.tree.leaves(tree), keyed, strict=True)
    return [np.asarray(jax.random.key_data(leaf) if is_key else leaf) for leaf, is_key in leaves]
