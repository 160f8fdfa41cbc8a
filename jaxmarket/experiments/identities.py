"""Auctions are temporal-difference rules: four identities, on random finite processes.

Each tabular agent owns one action and bids its estimate v(s, a) of the action's value. The winner moves its bid
towards the revenue of the purchase, r + γ · payout. With probability ε a random bidder wins instead, at the price that
the mechanism computes for it. The auction alone determines which temporal-difference rule the society runs:

| auction | expected payout at s' | rule |
|---|---|---|
| `vickrey`, two clones per action | max v | Q-learning, at any ε |
| `bb` | (1-ε) max v + ε mean v | expected SARSA, for the ε-greedy policy |
| `ccv`, no clones | p v₍₂₎ + (1-p) v₍₁₎, p = 1 - ε + ε/P | neither: value leaks to the second-highest bidder |
| `bb`, bids = b · strength, tax x · strength | b V(s') | TD(0) with step b + x, discount b/(b + x), reward r/(b + x) |

The first two are the market forms of Watkins (1989) and of van Seijen et al. (2009); the third is why Chang et al.
(2020) clone their bidders (§5); the last is Holland's (1985) bucket brigade. Both sides are in
`jaxmarket.environments.backups`.

Each identity is tested in two ways. In *expectation*, full backups through `auctions.award` and the mechanism's
``payout``, in float64, are iterated to their fixed point, which is compared with that of an independent dynamic program
in NumPy. *Sampled*, the society (`rollouts.rollout`, `settlement.settle`) runs in phases (Kearns and Singh 1999): bids
are held fixed within a phase, and then replaced by the mean revenue of each winner in each state. Every backup is a
contraction by γ, so with probability 1 - δ the result is within

    γ^K |v₀ - v*| + Σₖ γ^(K-k) εₖ,   εₖ = γ · spread(vₖ) · sqrt(ln(2 · S · P · K · N / δ) / (2 nₖ))

of the fixed point (Hoeffding, union over states, actions, K phases and the N possible values of the smallest
count nₖ). This is the bound reported.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.auctions import BUCKET_BRIGADE, CREDIT_CONSERVING_VICKREY, VICKREY, Mechanism
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.backups import (
    expected_backup,
    expected_sarsa,
    fixed_point,
    holland,
    leaky_values,
    q_learning,
    td_zero,
)
from jaxmarket.environments.tabular import FiniteMDP, garnet
from jaxmarket.experiments.claims import Claim, at, every_seed
from jaxmarket.experiments.conditions import Arrays, Compute, Scope
from jaxmarket.experiments.experiment import Experiment, Quick, Table
from jaxmarket.experiments.results import Results
from jaxmarket.keys import key_of
from jaxmarket.policies import BidPolicy, ValueHead, bid_table, linear
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.settlement import settle
from jaxmarket.society import Society
from jaxmarket.types import Array, Rules
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "IDENTITIES", "Identity", "expected_values", "holland_errors", "sampled_fixed_point"]

_TOLERANCE = 1e-6
_DELTA = 1e-3


# --- the identities


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


def expected_values(identity: Identity, mdp: FiniteMDP, exploration: float) -> np.ndarray:
    """The final bids of the society's agents under expected backups: f64 [S, P]."""
    with jax.enable_x64(True):
        backup = functools.partial(expected_backup, identity.mechanism, identity.clones, mdp, exploration)
        return np.asarray(jax.jit(lambda v: fixed_point(backup, v))(jnp.zeros(mdp.rewards.shape)))


# --- the market, sampled


@functools.partial(jax.jit, static_argnames=("society", "instances", "steps"))
def _mean_revenue(
    society: Society, values: Array, key: Array, exploration: Array, gamma: Array, instances: int, steps: int
) -> tuple[Array, Array]:
    """Mean revenue of each winner in each state if all agents bid ``values``, and counts: f [S, P] each."""
    env_params, rules = society.env.default_params, Rules(exploration=exploration)
    params = bid_table(values.T)

    def earned(key: Array) -> tuple[Array, Array]:
        rows = fresh_rollout(society, key, params, env_params, steps, rules)
        revenue = settle(rows, gamma).revenue
        primitive = jax.nn.one_hot(rows.outcome.winner // society.clones, society.primitives)
        return jnp.einsum("ts,tp,t->sp", rows.obs, primitive, revenue), jnp.einsum("ts,tp->sp", rows.obs, primitive)

    total, count = jax.tree.map(lambda x: x.sum(0), jax.vmap(earned)(jax.random.split(key, instances)))
    return total / count, count


def sampled_fixed_point(
    identity: Identity, mdp: FiniteMDP, exploration: float, key: Array, *, phases: int, instances: int, steps: int
) -> tuple[np.ndarray, float]:
    """Learn the values from the sampled society in phases.

    Returns:
        The values f [S, P], and their distance from the fixed point that holds with probability 0.999.

    Raises:
        ValueError: an agent never won in some state, so that its value is unknown.
    """
    society = Society(
        env=adapt(mdp), policy=BidPolicy(linear(), ValueHead()), mechanism=identity.mechanism, clones=identity.clones
    )
    values = np.zeros(mdp.rewards.shape)
    radius = float(np.abs(identity.oracle(mdp, exploration)).max())
    union = 2 * values.size * phases * instances * steps / _DELTA
    for k in range(phases):
        spread = mdp.gamma * float(np.ptp(values))
        mean, count = _mean_revenue(
            society, jnp.asarray(values, jnp.float32), jax.random.fold_in(key, k),
            jnp.float32(exploration), jnp.float32(mdp.gamma), instances, steps,
        )  # fmt: skip
        values, least = np.asarray(mean, np.float64), float(np.asarray(count).min())
        if least == 0:
            raise ValueError(f"steps: {instances} × {steps} auctions of {mdp.name} do not sample every state; use more")
        radius = mdp.gamma * radius + spread * np.sqrt(np.log(union) / (2 * least))
    return values, float(radius)


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
    visited, earned = np.array(states), reward[states[:-1]]
    with jax.enable_x64(True):
        every = jnp.arange(mdp.num_states)

        def expected(strength: Array) -> Array:
            # One sale of every rule, averaged over the next states.
            def after(s: Array, t: Array) -> Array:
                return holland(strength, jnp.stack([s, t]), jnp.asarray(reward)[s][None], share, tax)[0, s]

            sold = jax.vmap(lambda s: jax.vmap(functools.partial(after, s))(every))(every)
            return (jnp.asarray(onward) * sold).sum(1)

        settled = np.asarray(fixed_point(expected, jnp.zeros(mdp.num_states), 1e-15))
        path = np.asarray(holland(jnp.zeros(mdp.num_states), jnp.asarray(visited), jnp.asarray(earned), share, tax))
    exact = np.linalg.solve(np.eye(mdp.num_states) - gamma * onward, reward / step_size)
    rule = td_zero(np.zeros(mdp.num_states), visited, earned / step_size, step_size, gamma)
    return float(np.abs(settled - exact).max()), float(np.abs(path - rule).max())


# --- the experiment


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
        market, rule = expected_values(identity, mdp, exploration), identity.oracle(mdp, exploration)
        found["error"].append(np.abs(market - rule).max())
        found["rule from Q*"].append(np.abs(rule - mdp.optimal_q()).max())
        for name, values in (("market", market), ("rule", rule), ("optimal", mdp.optimal_q())):
            found[name] += values.ravel().tolist()
    return {name: np.array(values) for name, values in found.items()}


def _sampled(identity: Identity, first: int, phases: int, instances: int, steps: int, keys: Array) -> Arrays:
    """The sampled market's distances from the rule and from Q*, and the stated bound, on small processes: f [N]."""
    found = []
    for seed in range(first, first + len(keys)):
        mdp, rng = _draw_process(seed, most_states=5, most_gamma=0.7)
        exploration = rng.uniform(0.3, 0.7)
        market, bound = sampled_fixed_point(
            identity, mdp, exploration, key_of(seed), phases=phases, instances=instances, steps=steps
        )
        rules = (identity.oracle(mdp, exploration), mdp.optimal_q())
        found.append([*(np.abs(market - rule).max() for rule in rules), bound])
    return dict(zip(("error", "from Q*", "bound"), np.array(found).T, strict=True))


def _holland(first: int, keys: Array) -> Arrays:
    """`holland_errors` of the processes ``first``, …: f [N] each."""
    errors = [holland_errors(seed) for seed in range(first, first + len(keys))]
    return dict(zip(("settled", "path"), np.array(errors).T, strict=True))


_QUICK_EFFORT, _EFFORT = (12, 256, 128), (20, 512, 512)  # phases, instances, steps
_HOLLAND = "bb with tax"


def _conditions(scope: Scope) -> list[Compute]:
    """Every identity on random processes, sampled and in expectation; ``scope.seed`` is the number of the first."""
    effort = _QUICK_EFFORT if scope.quick else _EFFORT
    return [
        *(
            Compute(
                f"{identity.auction}, sampled",
                functools.partial(_sampled, identity, scope.seed + 10_000, *effort),
                seeds=2 if scope.quick else 6,
            )
            for identity in IDENTITIES
        ),
        *(
            Compute(f"{identity.auction}, expectation", functools.partial(_expectation, identity, scope.seed))
            for identity in IDENTITIES
        ),
        Compute(_HOLLAND, functools.partial(_holland, scope.seed)),
    ]


def _claims() -> list[Claim]:
    claims = []
    for identity in IDENTITIES:
        title, expectation, sampled = f"{identity.auction} = {identity.rule}", *_names(identity)
        claims += [
            every_seed(f"{title}, in expectation", at(expectation, "error"), at_most=_TOLERANCE),
            every_seed(f"{title}, sampled", at(sampled, "error"), at_most=at(sampled, "bound")),
        ]
    text = "bucket brigade with tax = TD(0), the fixed point and every one of 2,000 steps"
    return [*claims, every_seed(text, at(_HOLLAND, "error"), at_most=_TOLERANCE)]


def _names(identity: Identity) -> tuple[str, str]:
    return f"{identity.auction}, expectation", f"{identity.auction}, sampled"


def _rows(results: Results) -> list[dict[str, Any]]:
    rows = []
    for identity in IDENTITIES:
        expectation, sampled = (results[name] for name in _names(identity))
        errors, bounds = sampled["error"], sampled["bound"]
        rows.append(
            {
                "auction": identity.auction,
                "rule": identity.rule,
                "processes": len(expectation["error"]),
                "largest error": float(expectation["error"].max()),
                "rule from Q*": float(expectation["rule from Q*"].max()),
                "sampled processes": len(errors),
                "sampled error": float(errors.max()),
                "stated bound": float(bounds[np.argmax(errors / bounds)]),
                "outside the bound": int((errors > bounds).sum()),
                "Q* excluded": f"{int((sampled['from Q*'] > bounds).sum())} of {len(errors)}",
            }
        )
    settled, path = results[_HOLLAND]["settled"], results[_HOLLAND]["path"]
    rows.append(
        {
            "auction": _HOLLAND,
            "rule": "TD(0)",
            "processes": len(settled),
            "largest error": float(settled.max()),
            "rule from Q*": None,
            "sampled processes": len(path),
            "sampled error": float(path.max()),
            "stated bound": _TOLERANCE,
            "outside the bound": int((path > _TOLERANCE).sum()),
            "Q* excluded": None,
        }
    )
    return rows


def _draw(results: Results) -> Any:
    fig, axes = plotting.figure(columns=len(IDENTITIES) + 1, width=3.6, height=3.6)
    for identity, ax in zip(IDENTITIES, axes, strict=False):
        found = results[_names(identity)[0]]
        ax.plot(found["optimal"], found["rule"], ".", color="0.8", zorder=1)
        ax.plot(found["rule"], found["market"], ".", color="tab:blue", zorder=2)
        low, high = ax.get_xlim()
        ax.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=0)
        ax.set(xlabel=f"{identity.rule} (grey: Q*)", ylabel="bids of the market", title=identity.auction)
    ax = axes[-1]
    ax.semilogy(results[_HOLLAND]["settled"], "o", label="fixed point")
    ax.semilogy(np.maximum(results[_HOLLAND]["path"], 1e-17), "s", label="along 2,000 steps")
    ax.axhline(_TOLERANCE, color="black", linewidth=0.8)
    ax.set(xlabel="process", ylabel="distance from TD(0)", title=_HOLLAND)
    ax.legend(frameon=False, fontsize=8)
    return fig


EXPERIMENT = Experiment(
    name="identities",
    shows="auctions as temporal-difference rules: Q-learning, expected SARSA, leaking values, TD(0)",
    source="Chang et al. (2020), §4-5; Holland (1985); Watkins (1989)",
    conditions=_conditions,
    measures={
        "error": lambda found: found["error"] if "error" in found else np.maximum(found["settled"], found["path"]),
        "bound": lambda found: found["bound"],
    },
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
            aside=("processes", "sampled processes", "outside the bound"),
        )
    ],
    figures={"identities": _draw},
    quick=Quick(seeds=6),
)
