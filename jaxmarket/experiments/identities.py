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
(2020) clone their bidders (§5); the last is Holland's (1985) bucket brigade.

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

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import auctions
from jaxmarket.auctions import BUCKET_BRIGADE, CREDIT_CONSERVING_VICKREY, VICKREY, Mechanism
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.tabular import FiniteMDP, garnet
from jaxmarket.experiments.report import ExperimentOptions, Report, ResultTable, Verdict
from jaxmarket.keys import key_of
from jaxmarket.policies import BidPolicy, ValueHead, bid_table, linear
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.settlement import settle
from jaxmarket.society import Society
from jaxmarket.types import Array, Rules
from jaxmarket.view import plotting, tables

__all__ = [
    "IDENTITIES",
    "Identity",
    "expected_backup",
    "expected_sarsa",
    "expected_values",
    "fixed_point",
    "holland",
    "leaky_values",
    "run",
    "sampled_fixed_point",
    "td_zero",
]

_TOLERANCE = 1e-6
_DELTA = 1e-3


# --- the market, in expectation


def expected_payout(mechanism: Mechanism, bids: Array, exploration: Array | float) -> Array:
    """The expected payout to the owner of a state, over the random winner: f [].

    Args:
        mechanism: the auction.
        bids: f [A].
        exploration: ε, probability that a uniformly random bidder wins.
    """
    eligible = jnp.ones(bids.shape, bool)
    payout = jax.vmap(lambda w: mechanism.payout(auctions.award(bids, w, eligible)))(jnp.arange(bids.shape[0]))
    return (1 - exploration) * payout[auctions.choose(bids, None, eligible)] + exploration * payout.mean()


def expected_backup(mechanism: Mechanism, clones: int, mdp: FiniteMDP, exploration: float, values: Array) -> Array:
    """The expected revenue of each winner if all agents bid ``values``: f [S, P] to f [S, P]."""
    bids = jnp.repeat(values, clones, axis=1)
    payout = jax.vmap(expected_payout, (None, 0, None))(mechanism, bids, exploration)
    onward = jnp.asarray(mdp.transitions * ~mdp.terminal)
    return jnp.asarray(mdp.rewards) + mdp.gamma * onward @ payout


def fixed_point(
    backup: Callable[[Array], Array], values: Array, tolerance: float = 1e-13, most: int = 100_000
) -> Array:
    """Iterate a contraction until it moves by less than ``tolerance`` (relative beyond 1), or ``most`` times."""

    def unsettled(carry: tuple[Array, Array, Array]) -> Array:
        old, new, count = carry
        return (jnp.abs(new - old).max() > tolerance * jnp.maximum(1, jnp.abs(new).max())) & (count < most)

    def advance(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, new, count = carry
        return new, backup(new), count + 1

    return jax.lax.while_loop(unsettled, advance, (values, backup(values), jnp.zeros((), int)))[1]


# --- the dynamic programs, independent of any auction


def q_learning(mdp: FiniteMDP, exploration: float) -> np.ndarray:
    """Q*, the fixed point of Q-learning under any exploration: f64 [S, P]."""
    del exploration
    return mdp.optimal_q()


def expected_sarsa(mdp: FiniteMDP, exploration: float) -> np.ndarray:
    """Fixed point of expected SARSA for its own ε-greedy policy: f64 [S, P], by policy iteration."""
    states, actions = mdp.rewards.shape
    onward = mdp.gamma * (mdp.transitions * ~mdp.terminal).reshape(states * actions, states)
    greedy = mdp.rewards.argmax(1)
    while True:
        policy = (1 - exploration) * np.eye(actions)[greedy] + exploration / actions
        # Q = R + γ P Π Q, Π spreading a state over its actions.
        spread = np.zeros((states, states * actions))
        for s in range(states):
            spread[s, s * actions : (s + 1) * actions] = policy[s]
        q = np.linalg.solve(np.eye(states * actions) - onward @ spread, mdp.rewards.reshape(-1))
        q = q.reshape(states, actions)
        if (q.max(1) <= q[np.arange(states), greedy] + 1e-12).all():
            return q
        greedy = q.argmax(1)


def leaky_values(mdp: FiniteMDP, exploration: float) -> np.ndarray:
    """Fixed point of r + γ [p v₍₂₎ + (1-p) v₍₁₎], p = 1 - ε + ε/P: f64 [S, P], by value iteration."""
    actions = mdp.rewards.shape[1]
    p = 1 - exploration + exploration / actions
    values = np.zeros_like(mdp.rewards)
    while True:
        ranked = np.sort(values, axis=1)
        expected = p * ranked[:, -2] + (1 - p) * ranked[:, -1]
        new = mdp.rewards + mdp.gamma * (mdp.transitions * ~mdp.terminal) @ expected
        if np.abs(new - values).max() < 1e-13:
            return new
        values = new


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


# --- Holland's bucket brigade


def holland(strength: Array, states: Array, rewards: Array, share: float, tax: float) -> Array:
    """Run the bucket brigade along a trajectory, one rule per state: strengths after each sale, f [T, S].

    A rule bids ``share`` of its strength for its state, pays that bid to the previous rule, loses ``tax`` of its
    strength, and earns the reward. Its strength changes when the next state is sold.

    Args:
        strength: f [S], initial.
        states: i32 [T + 1], states visited.
        rewards: f [T], earned in ``states[:-1]``.
        share: b, the fraction of its strength that a rule bids.
        tax: x, the fraction of its strength that a rule loses when it acts.
    """
    rules = jnp.arange(strength.shape[0])

    def sale(strength: Array, visit: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        state, onward, reward = visit
        here, there = (auctions.clear(share * strength, eligible=rules == s) for s in (state, onward))
        utility = reward + BUCKET_BRIGADE.payout(there) - BUCKET_BRIGADE.price(here)
        strength = strength + jnp.where(rules == here.winner, utility - tax * strength, 0)
        return strength, strength

    return jax.lax.scan(sale, strength, (states[:-1], states[1:], rewards))[1]


def td_zero(values: np.ndarray, states: np.ndarray, rewards: np.ndarray, step_size: float, gamma: float) -> np.ndarray:
    """TD(0) along the same trajectory (Sutton 1988), in plain Python: f64 [T, S]."""
    values, history = values.copy(), []
    for state, onward, reward in zip(states[:-1], states[1:], rewards, strict=True):
        values[state] += step_size * (reward + gamma * values[onward] - values[state])
        history.append(values.copy())
    return np.array(history)


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


def run(options: ExperimentOptions) -> Report:
    """Check every identity on ``options.seeds`` random processes, in expectation and sampled."""
    sampled = 2 if options.quick else 6
    effort = {"phases": 12, "instances": 256, "steps": 128} if options.quick else {
        "phases": 20, "instances": 512, "steps": 512,
    }  # fmt: skip
    first = options.seed
    rows, verdicts = [], []
    fig, axes = plotting.figure(columns=len(IDENTITIES) + 1, width=3.6, height=3.6)
    with tables.progress("identities", unit="processes", shown=options.progress) as show:
        total, done = (len(IDENTITIES) + 1) * options.seeds + len(IDENTITIES) * sampled, 0

        def count(note: str) -> None:
            nonlocal done
            done += 1
            show(done, total, note)

        for identity, ax in zip(IDENTITIES, axes, strict=False):
            errors, gaps, samples = [], [], []
            for seed in range(first, first + options.seeds):
                mdp, rng = _draw_process(seed)
                exploration = rng.uniform(0.05, 1)
                market, oracle = expected_values(identity, mdp, exploration), identity.oracle(mdp, exploration)
                errors.append(np.abs(market - oracle).max())
                gaps.append(np.abs(oracle - mdp.optimal_q()).max())
                ax.plot(mdp.optimal_q().ravel(), oracle.ravel(), ".", color="0.8", zorder=1)
                ax.plot(oracle, market, ".", color="tab:blue", zorder=2)
                count(f"{identity.auction}, expectation")
            for seed in range(first + 10_000, first + 10_000 + sampled):
                mdp, rng = _draw_process(seed, most_states=5, most_gamma=0.7)
                exploration = rng.uniform(0.3, 0.7)
                market, radius = sampled_fixed_point(identity, mdp, exploration, key_of(seed), **effort)
                distance = np.abs(market - identity.oracle(mdp, exploration)).max()
                samples.append((distance, radius, np.abs(market - mdp.optimal_q()).max()))
                count(f"{identity.auction}, sampled")
            distances, radii, from_q = np.array(samples).T
            rows.append(
                {
                    "auction": identity.auction,
                    "rule": identity.rule,
                    "processes": options.seeds,
                    "largest error": float(max(errors)),
                    "rule from Q*": float(max(gaps)),
                    "sampled processes": sampled,
                    "sampled error": float(distances.max()),
                    "stated bound": float(radii[np.argmax(distances / radii)]),
                    "outside the bound": int((distances > radii).sum()),
                    "Q* excluded": f"{int((from_q > radii).sum())} of {sampled}",
                }
            )
            verdicts.append(
                Verdict.of(
                    f"{identity.auction} = {identity.rule}",
                    bool(max(errors) < _TOLERANCE and (distances <= radii).all()),
                    max(errors),
                    f"largest error {max(errors):.1e} over {options.seeds} processes in expectation; "
                    f"{distances.max():.4f} sampled, "
                    f"{int((distances > radii).sum())} of {sampled} outside their bounds",
                )
            )
            low, high = ax.get_xlim()
            ax.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=0)
            ax.set(xlabel=f"{identity.rule} (grey: Q*)", ylabel="bids of the market", title=identity.auction)

        settled, walked = [], []
        for seed in range(first, first + options.seeds):
            fixed, path = holland_errors(seed)
            settled.append(fixed)
            walked.append(path)
            count("Holland")
        worst = max(*settled, *walked)
        rows.append(
            {
                "auction": "bb with tax",
                "rule": "TD(0)",
                "processes": options.seeds,
                "largest error": max(settled),
                "rule from Q*": None,
                "sampled processes": options.seeds,
                "sampled error": max(walked),
                "stated bound": _TOLERANCE,
                "outside the bound": int(sum(path > _TOLERANCE for path in walked)),
                "Q* excluded": None,
            }
        )
        verdicts.append(
            Verdict.of(
                "bucket brigade with tax = TD(0)",
                worst < _TOLERANCE,
                worst,
                f"fixed point within {max(settled):.1e} of the linear solution, strengths within {max(walked):.1e} of "
                "TD(0) at every one of 2,000 steps",
            )
        )
    ax = axes[-1]
    ax.semilogy(settled, "o", label="fixed point")
    ax.semilogy(np.maximum(walked, 1e-17), "s", label="along 2,000 steps")
    ax.axhline(_TOLERANCE, color="black", linewidth=0.8)
    ax.set(xlabel="process", ylabel="distance from TD(0)", title="bb with tax")
    ax.legend(frameon=False, fontsize=8)
    table = ResultTable(
        "identities",
        "auctions and their temporal-difference rules",
        rows,
        "largest error: of the market's fixed point against the rule's, over all states and actions, in float64\n"
        "rule from Q*: largest distance of the rule's fixed point from Q*\n"
        "stated bound: holds with probability 0.999 for each process (2 to 5 states, γ at most .7); the tightest one\n"
        "is shown. TD(0) is compared step by step, and its bound is the tolerance\n"
        "Q* excluded: sampled processes in which Q* lies outside the bound",
        aside=("processes", "sampled processes", "outside the bound"),
    )
    return Report(
        settings={"processes": options.seeds, "sampled": effort, "quick": options.quick},
        tables=[table],
        verdicts=verdicts,
        figures={"identities": fig},
    )
