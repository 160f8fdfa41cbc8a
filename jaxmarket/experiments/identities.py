"""Auctions are temporal-difference rules: four identities, on random finite processes.

Each tabular agent owns one action and bids its estimate of the action's value; the auction alone determines the rule by
which the estimates change (``docs/reproductions/identities.md`` derives them). Watkins (1989) and van Seijen et al.
(2009) have the first two rules; the third is why Chang et al. (2020, §5) clone their bidders; the last is Holland's
(1985) bucket brigade. Both sides are in `jaxmarket.environments.backups`.

The fixed point of each rule is computed by an independent dynamic program, and compared with the market's twice: in
*expectation*, by full backups in float64, and *sampled*, by phases of the society, within the bound that
`jaxmarket.training.phases.phased_values` states.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.auctions import BUCKET_BRIGADE, CREDIT_CONSERVING_VICKREY, VICKREY, Mechanism
from jaxmarket.environments.backups import (
    expected_holland,
    expected_sarsa,
    fixed_point,
    holland,
    leaky_values,
    market_values,
    q_learning,
    td_zero,
)
from jaxmarket.environments.tabular import FiniteMDP, garnet
from jaxmarket.experiments.claims import Claim, at, every_seed
from jaxmarket.experiments.conditions import Arrays, Compute, Scope
from jaxmarket.experiments.experiment import Experiment, Quick, Table
from jaxmarket.experiments.results import Results
from jaxmarket.keys import key_of
from jaxmarket.training.phases import phased_values
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "IDENTITIES", "Identity", "holland_errors"]

_TOLERANCE = 1e-6
_HOLLAND = "bb with tax"


@dataclasses.dataclass(frozen=True)
class Identity:
    """An auction and the temporal-difference rule that it implements."""

    auction: str
    rule: str
    mechanism: Mechanism
    clones: int
    oracle: Callable[[FiniteMDP, float], np.ndarray]


IDENTITIES = (
    Identity("vickrey, 2 clones", "Q-learning", VICKREY, 2, q_learning),
    Identity("bb, 1 bidder", "expected SARSA", BUCKET_BRIGADE, 1, expected_sarsa),
    Identity("ccv, 1 bidder", "leak to the second-highest bidder", CREDIT_CONSERVING_VICKREY, 1, leaky_values),
)


# --- conditions: the keys count random processes, which are drawn by number


def _draw_process(seed: int, most_states: int = 8, most_gamma: float = 0.95) -> tuple[FiniteMDP, np.random.Generator]:
    """A process of random size, and the generator that drew it."""
    rng = np.random.default_rng(seed)
    states, actions = int(rng.integers(2, most_states + 1)), int(rng.integers(2, 5))
    gamma, branching = rng.uniform(0.5, most_gamma), int(rng.integers(1, states + 1))
    return garnet(seed, states, actions, gamma, branching), rng


def _expectation(identity: Identity, first: int, keys: Array) -> Arrays:
    """The market's and the rule's fixed points, and Q*, on the processes ``first``, …: their values, and distances."""
    found: dict[str, list[Any]] = {name: [] for name in ("market", "rule", "optimal", "error", "rule from Q*")}
    for seed in range(first, first + len(keys)):
        mdp, rng = _draw_process(seed)
        exploration = rng.uniform(0.05, 1)
        market = market_values(identity.mechanism, identity.clones, mdp, exploration)
        rule, optimal = identity.oracle(mdp, exploration), mdp.optimal_q()
        found["error"].append(np.abs(market - rule).max())
        found["rule from Q*"].append(np.abs(rule - optimal).max())
        for name, values in (("market", market), ("rule", rule), ("optimal", optimal)):
            found[name] += values.ravel().tolist()
    return {name: np.array(values) for name, values in found.items()}


def _sampled(identity: Identity, first: int, phases: int, instances: int, steps: int, keys: Array) -> Arrays:
    """The sampled market's distances from the rule and from Q*, and the stated bound, on small processes: f [N]."""
    found = []
    for seed in range(first, first + len(keys)):
        mdp, rng = _draw_process(seed, most_states=5, most_gamma=0.7)
        exploration = rng.uniform(0.3, 0.7)
        rule = identity.oracle(mdp, exploration)
        market, bound = phased_values(
            identity.mechanism, identity.clones, mdp, exploration, key_of(seed),
            radius=float(np.abs(rule).max()), phases=phases, instances=instances, steps=steps,
        )  # fmt: skip
        found.append([np.abs(market - rule).max(), np.abs(market - mdp.optimal_q()).max(), bound])
    return dict(zip(("error", "from Q*", "bound"), np.array(found).T, strict=True))


def holland_errors(seed: int, length: int = 2000) -> tuple[float, float]:
    """The bucket brigade against TD(0) on a random process under a random policy.

    Returns:
        The largest distance of the expected fixed point from the linear solution, and of its strengths from
        TD(0)'s at any step of a sampled trajectory.
    """
    mdp, rng = _draw_process(seed)
    share, tax = rng.uniform(0.05, 0.2), rng.uniform(0.01, 0.1)
    step_size, gamma = share + tax, share / (share + tax)
    policy = rng.dirichlet(np.ones(mdp.num_actions), mdp.num_states)
    onward = np.einsum("sa,sat->st", policy, mdp.transitions)
    reward = (policy * mdp.rewards).sum(1)
    states = [0]
    for _ in range(length):
        states.append(int(rng.choice(mdp.num_states, p=onward[states[-1]])))
    visited, earned, start = np.array(states), reward[states[:-1]], np.zeros(mdp.num_states)
    with jax.enable_x64(True):
        arrays = jnp.asarray(onward), jnp.asarray(reward)
        settled = fixed_point(lambda s: expected_holland(s, *arrays, share, tax), jnp.asarray(start), 1e-15)
        path = holland(jnp.asarray(start), jnp.asarray(visited), jnp.asarray(earned), share, tax)
        settled, path = np.asarray(settled), np.asarray(path)
    exact = np.linalg.solve(np.eye(mdp.num_states) - gamma * onward, reward / step_size)
    rule = td_zero(start, visited, earned / step_size, step_size, gamma)
    return float(np.abs(settled - exact).max()), float(np.abs(path - rule).max())


def _holland(first: int, keys: Array) -> Arrays:
    """`holland_errors` of the processes ``first``, …: f [N] each."""
    errors = [holland_errors(seed) for seed in range(first, first + len(keys))]
    return dict(zip(("settled", "path"), np.array(errors).T, strict=True))


def _conditions(scope: Scope) -> list[Compute]:
    """Every identity on random processes, sampled and in expectation; ``scope.seed`` is the number of the first."""
    seeds, effort = (2, (12, 256, 128)) if scope.quick else (6, (20, 512, 512))  # phases, instances, steps
    part, first = functools.partial, scope.seed
    sampled = [
        Compute(f"{each.auction}, sampled", part(_sampled, each, first + 10_000, *effort), seeds=seeds)
        for each in IDENTITIES
    ]
    expected = [Compute(f"{each.auction}, expectation", part(_expectation, each, first)) for each in IDENTITIES]
    return [*sampled, *expected, Compute(_HOLLAND, part(_holland, first))]


# --- claims, table and figure


def _claims() -> list[Claim]:
    claims = []
    for each in IDENTITIES:
        title, sampled = f"{each.auction} = {each.rule}", f"{each.auction}, sampled"
        claims += [
            every_seed(f"{title}, in expectation", at(f"{each.auction}, expectation", "error"), at_most=_TOLERANCE),
            every_seed(f"{title}, sampled", at(sampled, "error"), at_most=at(sampled, "bound")),
        ]
    text = "bucket brigade with tax = TD(0), the fixed point and every one of 2,000 steps"
    return [*claims, every_seed(text, lambda results: np.maximum(*_holland_of(results)), at_most=_TOLERANCE)]


def _holland_of(results: Results) -> tuple[np.ndarray, np.ndarray]:
    return results[_HOLLAND]["settled"], results[_HOLLAND]["path"]


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    for each in IDENTITIES:
        expectation, sampled = results[f"{each.auction}, expectation"], results[f"{each.auction}, sampled"]
        errors, bounds = sampled["error"], sampled["bound"]
        yield {
            "auction": each.auction,
            "rule": each.rule,
            "largest error": float(expectation["error"].max()),
            "rule from Q*": float(expectation["rule from Q*"].max()),
            "sampled error": float(errors.max()),
            "stated bound": float(bounds[np.argmax(errors / bounds)]),
            "Q* excluded": f"{int((sampled['from Q*'] > bounds).sum())} of {len(errors)}",
        }
    settled, path = _holland_of(results)
    yield {
        "auction": _HOLLAND,
        "rule": "TD(0)",
        "largest error": float(settled.max()),
        "rule from Q*": None,
        "sampled error": float(path.max()),
        "stated bound": _TOLERANCE,
        "Q* excluded": None,
    }


def _draw(results: Results) -> Any:
    fig, axes = plotting.figure(columns=len(IDENTITIES) + 1, width=3.6, height=3.6)
    for identity, ax in zip(IDENTITIES, axes, strict=False):
        found = results[f"{identity.auction}, expectation"]
        ax.plot(found["optimal"], found["rule"], ".", color="0.8", zorder=1)
        ax.plot(found["rule"], found["market"], ".", color=plotting.COLORS[0], zorder=2)
        ax.axline((0, 0), slope=1, color="black", linewidth=0.8, zorder=0)
        ax.set(xlabel=f"{identity.rule} (grey: Q*)", ylabel="bids of the market", title=identity.auction)
    settled, path = _holland_of(results)
    axes[-1].semilogy(settled, "o", label="fixed point")
    axes[-1].semilogy(np.maximum(path, 1e-17), "s", label="along 2,000 steps")
    axes[-1].axhline(_TOLERANCE, color="black", linewidth=0.8)
    axes[-1].set(xlabel="process", ylabel="distance from TD(0)", title=_HOLLAND)
    plotting.legend_below(axes[-1])
    return fig


EXPERIMENT = Experiment(
    name="identities",
    shows="auctions as temporal-difference rules: Q-learning, expected SARSA, leaking values, TD(0)",
    source="Chang et al. (2020), §4-5; Holland (1985); Watkins (1989)",
    conditions=_conditions,
    claims=_claims(),
    tables=[
        Table(
            "identities",
            "auctions and their temporal-difference rules",
            _rows,
            "largest error: of the market's fixed point against the rule's, over all states and actions, in float64\n"
            "rule from Q*: largest distance of the rule's fixed point from Q*\n"
            "stated bound: holds with probability 0.999 for each process (2 to 5 states, γ at most .7); the tightest "
            "one\nis shown. TD(0) is compared step by step, and its bound is the tolerance\n"
            "Q* excluded: sampled processes in which Q* lies outside the bound",
        )
    ],
    figures={"identities": _draw},
    quick=Quick(seeds=6),
)
