"""Speed and accuracy of the equilibrium solvers, compared with independent solvers of the same markets."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, sparse

from benchmarks.timing import REPEATS, Report, Timing, executable, measure
from jaxmarket import wide_market
from jaxmarket.types import Array, PyTree
from jaxmarket.view.plotting import COLORS, figure
from jaxmarket.view.tables import progress
from jaxmarket.wide_market import (
    Additive,
    ConvexProgram,
    Equilibrium,
    EquilibriumCertificate,
    EquilibriumSolver,
    Linear,
    Logarithmic,
    Produced,
    ProportionalResponse,
    Quadratic,
    SealedBids,
    Tatonnement,
    WideMarket,
    init,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CASES", "Case", "Market", "compare", "economies", "many", "market", "over_rounds", "run", "trade"]

EXCESS, GAP = 1e-4, 1e-3
"""Tolerances of an equilibrium: largest excess demand over supply, and relative duality gap."""

_TIME_LIMIT = 10.0  # seconds after which a slow solver is not timed again; with --quick, a tenth for batches
_FEWER = {("ConvexProgram", "Linear"): 16}
"""Number of markets under ``vmap``, where 256 would take more than a quarter of an hour on a CPU."""

Market = tuple[PyTree, np.ndarray, np.ndarray]
"""Valuations (leaves [N, G]), wealth f32 [N], holdings f32 [N, G], all NumPy."""
ReferenceSolver = Callable[[list[np.ndarray], np.ndarray, np.ndarray], float]
"""Leaves of the valuations, wealth and holdings, in double precision -> maximal welfare."""


# --- reference solvers, which share no code with the library's solvers


def _dual(kind: type) -> ReferenceSolver:
    """SciPy's L-BFGS-B on the dual of welfare, over prices and each agent's multiplier λ_i, in double precision.

    max Σ t_i, t_i <= w_i, t_i <= v_i(x_i), Σ x_i = S has the dual
    min over p >= 0, 0 < λ_i <= 1 of p · S + Σ_i (1 - λ_i) w_i + max_x λ_i v_i(x) - p · x. No search per agent.
    It stops when excess demand and duality gap are below 1e-5, as the library's solvers do.
    """

    def solve(leaves: list[np.ndarray], wealth: np.ndarray, holdings: np.ndarray) -> float:
        first, second = leaves
        supply, goods = holdings.sum(0), holdings.shape[1]
        seen = {}

        def dual(point: np.ndarray) -> tuple[float, np.ndarray]:
            prices, money = point[:goods], point[goods:]
            if kind is Quadratic:
                x = np.maximum(first - prices / money[:, None], 0) / second
                worth = (first * x - second * x**2 / 2).sum(1)
            else:
                x = np.maximum(money[:, None] * first / prices - second, 0)
                worth = (first * np.log1p(x / second)).sum(1)
            left = supply - x.sum(0)
            bound = prices @ left + ((1 - money) * wealth + money * worth).sum()
            seen["excess"] = (-left / supply).max()
            seen["gap"] = 1 - np.minimum(worth, wealth).sum() / bound
            return bound, np.concatenate([left, worth - wealth])

        def good_enough(_: np.ndarray) -> None:
            if seen["excess"] <= 1e-5 and abs(seen["gap"]) <= 1e-5:
                raise StopIteration

        start = np.concatenate([np.full(goods, first.mean()), np.ones(len(wealth))])
        bounds = [(1e-9, None)] * goods + [(1e-6, 1)] * len(wealth)
        options = {"maxiter": 10_000, "maxfun": 20_000, "maxcor": 30, "ftol": 0, "gtol": 0}
        found = optimize.minimize(
            dual, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options, callback=good_enough
        )
        if not (seen["excess"] <= EXCESS and abs(seen["gap"]) <= GAP):
            raise RuntimeError(f"excess demand {seen['excess']:.1e}, gap {seen['gap']:.1e}: {found.message}")
        return float(found.fun)

    return solve


def _sparse(values: np.ndarray) -> tuple[sparse.csr_array, sparse.csr_array, int]:
    """Values [N, K] and use of goods [G, K] of the K pairs of an agent and a good with a positive value, and K."""
    agent, good = np.nonzero(values > 0)
    pairs = np.arange(len(agent))
    value = sparse.csr_array((values[agent, good], (agent, pairs)), shape=(values.shape[0], len(pairs)))
    used = sparse.csr_array((np.ones(len(pairs)), (good, pairs)), shape=(values.shape[1], len(pairs)))
    return value, used, len(pairs)


def _linear_program(leaves: list[np.ndarray], wealth: np.ndarray, holdings: np.ndarray) -> float:
    """SciPy's HiGHS (interior point and crossover): max Σ t_i, t_i <= w_i, t_i <= v_i · x_i, Σ x_i <= S."""
    value, used, pairs = _sparse(leaves[0])
    goods, agents = holdings.shape[1], len(wealth)
    matrix = sparse.vstack(
        [
            sparse.hstack([-value, sparse.eye_array(agents)]),
            sparse.hstack([used, sparse.csr_array((goods, agents))]),
        ]
    ).tocsr()
    upper = np.concatenate([np.full(pairs, np.inf), wealth])
    found = optimize.linprog(
        np.concatenate([np.zeros(pairs), -np.ones(agents)]),
        A_ub=matrix,
        b_ub=np.concatenate([np.zeros(agents), holdings.sum(0)]),
        bounds=np.stack([np.zeros(pairs + agents), upper], 1),
        method="highs-ipm",
    )
    if found.status != 0:
        raise RuntimeError(found.message)
    return -float(found.fun)


def _cvxpy(kind: type, eisenberg_gale: bool = False, quasilinear: bool = False) -> ReferenceSolver:
    """CVXPY with Clarabel, an interior point method, at its default tolerances.

    It solves the program of capped valuations, or the Eisenberg-Gale program (exponential cones) per unit of budget.
    """

    def solve(leaves: list[np.ndarray], wealth: np.ndarray, holdings: np.ndarray) -> float:
        import cvxpy as cp  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        supply, units = np.ones(holdings.shape[1]), 1.0
        if kind is not Quadratic:
            # In shares of each good, and money in mean wealth: with logarithms Clarabel fails on large markets that
            # are not scaled. Where it does not need it, it is twice as fast without.
            supply, units = holdings.sum(0), wealth.mean()
        limit = holdings.sum(0) / supply
        money, agents = wealth / units, len(wealth)
        if eisenberg_gale:
            worth, used, pairs = _sparse(leaves[0] * supply / units)
            x, kept = cp.Variable(pairs, nonneg=True), cp.Variable(agents, nonneg=True)
            objective = money @ cp.log(worth @ x + kept) - cp.sum(kept) if quasilinear else money @ cp.log(worth @ x)
            constraints = [used @ x <= limit]
        else:
            first, second = leaves[0] / units, leaves[1]
            x, t = cp.Variable(holdings.shape, nonneg=True), cp.Variable(agents)
            if kind is Quadratic:
                worth = cp.multiply(first * supply, x) - cp.multiply(second * supply**2 / units / 2, cp.square(x))
            else:
                worth = cp.multiply(first, cp.log1p(cp.multiply(supply / second, x)))
            objective, constraints = cp.sum(t), [t <= money, t <= cp.sum(worth, axis=1), cp.sum(x, axis=0) <= limit]
        problem = cp.Problem(cp.Maximize(objective), constraints)  # pyright: ignore[reportArgumentType]
        problem.solve(solver=cp.CLARABEL)
        if problem.status != cp.OPTIMAL:
            raise RuntimeError(problem.status)
        best = float(np.asarray(problem.value))
        return best / agents + np.log(units) if eisenberg_gale else best * units

    return solve


def _shrunk(values: np.ndarray, wealth: np.ndarray, holdings: np.ndarray) -> np.ndarray:
    """Bids for the goods for sale, scaled down to each agent's wealth; -inf where an agent does not bid."""
    asked = np.where(np.isfinite(values), values, 0) @ holdings.sum(0)
    return np.where(np.isfinite(values), values * np.minimum(1, wealth / np.maximum(asked, 1e-30))[:, None], -np.inf)


def _highest_bids(leaves: list[np.ndarray], wealth: np.ndarray, holdings: np.ndarray) -> float:
    """NumPy's argmax: the highest bid wins each good. It computes winners without prices."""
    bids = _shrunk(leaves[0], wealth, holdings)
    return float(bids[bids.argmax(0), np.arange(bids.shape[1])] @ holdings.sum(0))


# --- welfare of a solver's result, computed independently of the solvers


def _capped(
    leaves: list[np.ndarray], wealth: np.ndarray, holdings: np.ndarray, prices: np.ndarray, x: np.ndarray, kind: type
) -> tuple[float, float]:
    if kind is Linear:
        value = (leaves[0] * x).sum(1)
    elif kind is Quadratic:
        x = np.minimum(x, leaves[0] / leaves[1])
        value = (leaves[0] * x - leaves[1] * x**2 / 2).sum(1)
    else:
        value = (leaves[0] * np.log1p(x / leaves[1])).sum(1)
    return np.minimum(value, wealth).sum(), (value >= wealth * (1 - 1e-3)).mean()


def _budgets(
    leaves: list[np.ndarray], wealth: np.ndarray, holdings: np.ndarray, prices: np.ndarray, x: np.ndarray, kind: type
) -> tuple[float, float]:
    got = (leaves[0] * x).sum(1)
    return wealth @ np.log(got) / wealth.sum(), 1.0


def _quasilinear(
    leaves: list[np.ndarray], wealth: np.ndarray, holdings: np.ndarray, prices: np.ndarray, x: np.ndarray, kind: type
) -> tuple[float, float]:
    kept = np.maximum(wealth - x @ prices, 0)
    got = (leaves[0] * x).sum(1) + kept
    return (wealth @ np.log(got) - kept.sum()) / wealth.sum(), (kept <= 0.01 * wealth).mean()


def _auctioned(
    leaves: list[np.ndarray], wealth: np.ndarray, holdings: np.ndarray, prices: np.ndarray, x: np.ndarray, kind: type
) -> tuple[float, float]:
    bids = _shrunk(leaves[0], wealth, holdings)
    return bids[x > 0.5].sum(), (np.where(np.isfinite(bids), bids, 0) < np.maximum(leaves[0], 0)).any(1).mean()


# --- the cases


@dataclasses.dataclass(frozen=True)
class Case:
    """One class of markets, the library's solvers for it, and independent reference solvers.

    Attributes:
        kind: class of the valuations.
        wealth: mean wealth per good; chosen so that it limits a third to a half of the agents.
        solvers: the library's solvers by name.
        references: the reference solvers by name.
        welfare: leaves, wealth, holdings, prices, bundles, kind -> welfare in the units of the reference solvers, and
            the share of agents that wealth limits.
        relative: whether welfare is money, so that differences are relative to it; otherwise it is a logarithm.
    """

    kind: type[Any]
    wealth: float
    solvers: Mapping[str, EquilibriumSolver]
    references: Mapping[str, ReferenceSolver]
    welfare: Callable[..., tuple[float, float]]
    relative: bool = True


_BOTH: Mapping[str, EquilibriumSolver] = {"Tatonnement": Tatonnement(), "ConvexProgram": ConvexProgram()}

CASES: Mapping[str, Case] = {
    "Quadratic": Case(Quadratic, 0.5, _BOTH, {"SciPy": _dual(Quadratic), "CVXPY": _cvxpy(Quadratic)}, _capped),
    "Logarithmic": Case(Logarithmic, 0.5, _BOTH, {"SciPy": _dual(Logarithmic), "CVXPY": _cvxpy(Logarithmic)}, _capped),
    "Linear": Case(Linear, 1.0, {"ConvexProgram": ConvexProgram()}, {"HiGHS": _linear_program}, _capped),
    "Fisher": Case(
        Linear,
        1.0,
        {"Proportional": ProportionalResponse(quasilinear=False)},
        {"CVXPY": _cvxpy(Linear, eisenberg_gale=True)},
        _budgets,
        relative=False,
    ),
    "Quasilinear": Case(
        Linear,
        0.6,
        {"Proportional": ProportionalResponse()},
        {"CVXPY": _cvxpy(Linear, eisenberg_gale=True, quasilinear=True)},
        _quasilinear,
        relative=False,
    ),
    "Additive": Case(Additive, 1.35, {"SealedBids": SealedBids()}, {"NumPy": _highest_bids}, _auctioned),
}
"""The measured classes of markets by name."""


def market(case: Case, agents: int, goods: int, seed: int) -> Market:
    """A random market: half of the agents value only about a quarter of the goods, wealth is exponential.

    Goods differ in value (by a factor of 3) and in supply (by a factor of 7). Of each indivisible good there is one
    unit. The market is drawn by NumPy, in single precision.
    """
    rng = np.random.default_rng(seed)
    cares = rng.random((agents, goods)) < rng.choice([0.25, 1.0], (agents, 1))
    cares[np.arange(agents), rng.integers(goods, size=agents)] = True  # every agent values at least one good
    first = rng.uniform(0.2, 2, (agents, goods)) * rng.uniform(0.5, 1.5, goods)
    second = rng.uniform(0.5, 2, (agents, goods))
    wealth = rng.exponential(case.wealth * goods, agents)
    holdings = rng.random((agents, goods)) * rng.uniform(0.1, 0.7, goods)
    if case.kind is Additive:
        leaves: tuple[np.ndarray, ...] = (np.where(cares, first, -np.inf),)
        holdings = np.eye(agents)[rng.integers(agents, size=goods)].T
    else:
        leaves = (first * cares,) if case.kind is Linear else (first * cares, second)
    kind: Any = case.kind
    valuations = kind(*(leaf.astype(np.float32) for leaf in leaves))
    return valuations, wealth.astype(np.float32), holdings.astype(np.float32)


def _double(of: Market) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    return [np.asarray(leaf, float) for leaf in jax.tree.leaves(of[0])], of[1].astype(float), of[2].astype(float)


def _compile(solver: EquilibriumSolver, markets: Market, way: str = "one") -> tuple[Callable[..., Equilibrium], float]:
    """The compiled program and its compile seconds, for one market or many (by ``vmap`` or ``jax.lax.map``)."""

    def solve(valuations: PyTree, wealth: Any, holdings: Any) -> Equilibrium:
        return solver(valuations, wealth, holdings)

    def in_turn(*inputs: Any) -> Equilibrium:
        return jax.lax.map(lambda single: solve(*single), inputs)

    function = {"one": solve, "vmap": jax.vmap(solve), "map": in_turn}[way]

    began = time.perf_counter()
    program = executable(function, *markets)
    return program, time.perf_counter() - began  # pyright: ignore[reportReturnType]


def _clock(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - began, result


def _short(number: Any) -> float:
    """Round to two digits, for terminal tables; the raw numbers are stored with the timings."""
    return float(f"{float(number):.2g}")


def _meets(found: Equilibrium) -> np.ndarray:
    certificate = found.certificate
    return np.asarray((certificate.excess_demand <= EXCESS) & (certificate.duality_gap <= GAP))


def compare(
    report: Report, name: str, case: Case, agents: int, goods: int, time_limit: float = _TIME_LIMIT, seed: int = 0
) -> None:
    """Time all solvers and reference solvers alternately on one market, and add the results to the report.

    Args:
        report: the report to extend.
        name: name of the case.
        case: the case to measure.
        agents: N.
        goods: G.
        time_limit: seconds after which a reference solver is not timed again.
        seed: random seed of the market.
    """
    one = market(case, agents, goods, seed)
    inputs, double = jax.device_put(one), _double(one)
    programs = {label: _compile(solver, inputs) for label, solver in case.solvers.items()}
    found = {label: _clock(lambda run=run: run(*inputs))[1] for label, (run, _) in programs.items()}
    best: dict[str, float] = {}
    trouble: dict[str, str] = {}
    seconds: dict[str, list[float]] = {label: [] for label in (*programs, *case.references)}
    for label, reference in case.references.items():  # a warm-up; for the slowest solvers the only timed call
        try:
            first, best[label] = _clock(lambda reference=reference: reference(*double))
            seconds[label] += [first] if first > time_limit / 2 else []
        except ImportError:
            trouble[label] = "not installed"
        except Exception as error:  # other packages may raise any exception; the table reports it
            lines = str(error).splitlines()
            trouble[label] = "failed"
            report.notes.append(f"{label} on {name}: {type(error).__name__}: {lines[0] if lines else ''}")
    for _ in range(REPEATS):
        for label, (run, _) in programs.items():
            seconds[label].append(_clock(lambda run=run: run(*inputs))[0])
        for label in best:
            if sum(seconds[label]) < time_limit:
                seconds[label].append(_clock(lambda label=label: case.references[label](*double))[0])

    shape = f"{agents:,} agents × {goods} goods"
    ours = report.tables.setdefault(f"one market, {shape}", [])
    beside = report.tables.setdefault("the same market, solved by reference solvers", [])
    for label, (_, compiling) in programs.items():
        timing, result = Timing(tuple(seconds[label]), compiling), found[label]
        welfare, limited = case.welfare(
            *double, *(np.asarray(part, float) for part in (result.prices, result.bundles)), case.kind
        )
        report.timings[f"one, {label}: {name}"] = timing.raw() | {"limited": [float(limited)]}
        certificate = result.certificate
        ours.append(
            {
                "solver": label,
                "valuations": name,
                "steps": int(certificate.iterations),
                "excess": _short(certificate.excess_demand),
                "gap": _short(certificate.duality_gap),
                "meets": "yes" if _meets(result) else "NO",
                "ms": 1e3 * timing.median,
                "compile s": timing.compile_seconds,
            }
        )
        for reference in case.references:
            theirs = statistics.median(seconds[reference]) if reference in best else None
            difference = None
            if reference in best:
                difference = float(best[reference] - welfare) / (abs(best[reference]) if case.relative else 1.0)
                report.timings[f"one, {reference}: {name}"] = {"seconds": seconds[reference], "median": theirs}
            beside.append(
                {
                    "solver": label,
                    "valuations": name,
                    "ms": 1e3 * timing.median,
                    "reference": reference,
                    "reference ms": trouble[reference] if theirs is None else 1e3 * theirs,
                    "runs": len(seconds[reference]),
                    "times": None if theirs is None else theirs / timing.median,
                    "welfare difference": None if difference is None else _short(difference),
                }
            )


def many(
    report: Report,
    name: str,
    case: Case,
    agents: int,
    goods: int,
    ways: Sequence[tuple[str, int]],
    time_limit: float = _TIME_LIMIT,
) -> None:
    """Time one call for many markets of one shape, and add the results to the report.

    Args:
        report: the report to extend.
        name: name of the case.
        case: the case to measure.
        agents: N.
        goods: G.
        ways: ``vmap`` or ``map``, and how many markets.
        time_limit: seconds after which a call is not repeated.
    """
    drawn = [market(case, agents, goods, seed) for seed in range(max(markets for _, markets in ways))]
    every = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
    rows = report.tables.setdefault("many such markets in one call", [])
    for (label, solver), (way, wanted) in itertools.product(case.solvers.items(), ways):
        markets = min(wanted, _FEWER.get((label, name), wanted)) if way == "vmap" else wanted
        inputs = jax.device_put(jax.tree.map(lambda leaf, markets=markets: leaf[:markets], every))
        run, compiling = _compile(solver, inputs, way)
        first, found = _clock(lambda run=run, inputs=inputs: run(*inputs))
        seconds = (
            [first] if first > time_limit / 2 else []
        )  # the first call is a warm-up, except for the slowest solvers
        while len(seconds) < REPEATS and (not seconds or sum(seconds) < time_limit):
            seconds.append(_clock(lambda run=run, inputs=inputs: run(*inputs))[0])
        timing = Timing(tuple(seconds), compiling)
        report.timings[f"{way} {markets}, {label}: {name}"] = timing.raw()
        found = jax.device_get(found)
        limited = [
            case.welfare(*_double(single), prices.astype(float), bundles.astype(float), case.kind)[1]
            for single, prices, bundles in zip(drawn, found.prices, found.bundles, strict=False)
        ]
        report.timings[f"{way} {markets}, {label}: {name}"] |= {
            "limited": [float(share) for share in limited],
            "iterations": found.certificate.iterations.tolist(),
            "excess": found.certificate.excess_demand.tolist(),
            "gap": found.certificate.duality_gap.tolist(),
        }
        rows.append(
            {
                "solver": label,
                "valuations": name,
                "way": f"{way} {markets}",
                "worst excess": _short(found.certificate.excess_demand.max()),
                "worst gap": _short(found.certificate.duality_gap.max()),
                "meet": int(_meets(found).sum()),
                "ms": 1e3 * timing.median / markets,
                "runs": len(seconds),
            }
        )


def economies(case: Case, agents: int, goods: int, instances: int) -> PyTree:
    """Random economies: valuations, wealth and mean harvests, leaves [instances, N, ...]."""
    drawn = [market(case, agents, goods, seed) for seed in range(instances)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)


def trade(
    solver: EquilibriumSolver, key: Array, valuations: PyTree, wealth: Array, harvest: Array, rounds: int
) -> EquilibriumCertificate:
    """The certificates of every round of one economy.

    Agents use up what they buy, and harvest goods in every round: the mean harvest times exp(z / 10) with normal z. A
    rent of 5% and an income of 5% of the mean initial wealth keep wealth from drifting.
    """

    def produce(key: Array, agents: tuple[PyTree, Array], world: PyTree, bundles: Array) -> Produced:
        shocks = jnp.exp(jax.random.normal(key, bundles.shape) / 10)
        return Produced(holdings=agents[1] * shocks, reward=jnp.zeros(bundles.shape[0], bundles.dtype), world=world)

    economy = WideMarket(lambda agent, world: agent[0], produce, solver)
    state = init((valuations, harvest), harvest, wealth)
    return wide_market.run(economy, key, state, rounds=rounds, income=wealth.mean() / 20, rent=0.05)[1].certificate


def over_rounds(report: Report, cases: Sequence[str], agents: int, goods: int, instances: int, rounds: int) -> None:
    """Time wide markets over rounds of trade and production, all instances under `jax.vmap`, and add the results.

    A step is one round of one instance: trade at equilibrium prices, production, cash flows and the certificate.

    Args:
        report: the report to extend.
        cases: names of `CASES`.
        agents: N.
        goods: G.
        instances: economies.
        rounds: per call.
    """
    keys = jax.random.split(jax.random.key(0), instances)
    candidates: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {}
    for name in cases:
        drawn = jax.device_put(economies(CASES[name], agents, goods, instances))
        for label, solver in CASES[name].solvers.items():

            def every(keys: Array, *drawn: Any, solver: EquilibriumSolver = solver) -> EquilibriumCertificate:
                return jax.vmap(lambda key, *one: trade(solver, key, *one, rounds=rounds))(keys, *drawn)

            candidates[f"{label}: {name}"] = every, (keys, *drawn)
    results: dict[str, EquilibriumCertificate] = {}
    timings = measure(candidates, results=results)
    report.keep(f"{instances} economies", timings)
    rows = report.tables.setdefault(f"{instances} economies, {agents:,} agents × {goods} goods, {rounds} rounds", [])
    for name, timing in timings.items():
        found = jax.device_get(results[name])
        solver, valuations = name.split(": ")
        rows.append(
            {
                "solver": solver,
                "valuations": valuations,
                "iterations": float(found.iterations.mean()),
                "worst excess": _short(found.excess_demand.max()),
                "worst gap": _short(found.duality_gap.max()),
                "steps / s": instances * rounds / timing.median,
            }
        )


def run(quick: bool = False) -> Report:
    """Measure every case: one market beside the reference solvers, many markets in one call, markets over rounds."""
    report = Report("equilibrium")
    agents, goods = (128, 16) if quick else (1024, 64)
    ways = [("vmap", 16)] if quick else [("vmap", 256), ("map", 256)]
    with progress("equilibrium", unit="cases") as show:
        for done, (name, case) in enumerate(CASES.items()):
            show(2 * done, 2 * len(CASES), name)
            compare(report, name, case, agents, goods)
            show(2 * done + 1, 2 * len(CASES), f"{name}, many markets")
            many(report, name, case, agents, goods, ways, _TIME_LIMIT * (0.1 if quick else 1.0))
        show(2 * len(CASES), 2 * len(CASES), "rounds")
        over_rounds(report, ("Quadratic", "Logarithmic"), 100, 8, 64, 2 if quick else 20)
        show(2 * len(CASES), 2 * len(CASES))
    single, beside, batch, rounds = _tables(report)
    solved = sum(int(row["way"].split()[1]) for row in batch)
    differences = [abs(row["welfare difference"]) for row in beside if row["welfare difference"] is not None]
    kept = {label: numbers for label, numbers in report.timings.items() if "gap" in numbers}
    shares = {
        name: np.concatenate([numbers["limited"] for label, numbers in kept.items() if label.endswith(f": {name}")])
        for name in CASES
    }
    report.headline |= {
        "single_markets_that_meet": sum(row["meets"] == "yes" for row in single) / len(single),
        "many_markets": solved,
        "many_markets_that_meet": sum(row["meet"] for row in batch),
        "worst_excess": float(max(np.max(numbers["excess"]) for numbers in kept.values())),
        "worst_gap": float(max(np.max(numbers["gap"]) for numbers in kept.values())),
        "worst_welfare_difference": max(differences),
        "slowest_ms": max(row["ms"] for row in single),
        "slowest_ms_of_many": max(row["ms"] for row in batch),
        "wide_market_steps_per_second": max(row["steps / s"] for row in rounds if row["valuations"] == "Quadratic"),
        "worst_excess_over_rounds": max(row["worst excess"] for row in rounds),
        "worst_gap_over_rounds": max(row["worst gap"] for row in rounds),
    }
    for name in CASES:
        fastest = min(row["ms"] for row in single if row["valuations"] == name)
        others = [
            row["reference ms"]
            for row in beside
            if row["valuations"] == name and isinstance(row["reference ms"], float)
        ]
        report.headline[f"reference_over_ours_{name.lower()}"] = min(others) / fastest if others else None
    report.figure = _draw(report)
    report.notes += [
        f"meets: excess demand over supply <= {EXCESS:g} and relative optimality gap <= {GAP:g}, by the solver's own "
        "certificate in single precision; steps: of descent, of price changes, of rounds of bids",
        "markets: half of the agents value only about a quarter of the goods; exponential wealth; goods differ "
        "by a factor of 3 in value and 7 in supply; the single market is the first of the many",
        "agents limited by wealth (valuation capped, budget spent to the last 1%, bids reduced), mean over markets: "
        + ", ".join(f"{name} {of.mean():.2f} ({of.min():.2f} to {of.max():.2f})" for name, of in shares.items()),
        "reference solvers: in double precision on one core, timed with the construction of their programs. "
        "SciPy: L-BFGS-B on the dual of the capped program over prices and multipliers of the agents, stopped at "
        "an excess and gap of 1e-5 as ours; HiGHS: SciPy's, interior point and crossover; CVXPY: Clarabel at default "
        "tolerances; NumPy: argmax of the bids for each good, winners without prices, as additive valuations need no "
        "search",
        "welfare difference: welfare of the reference solver minus ours (evaluated in double precision by other "
        "code), relative; for budgets the difference of the Eisenberg-Gale objective per unit of budget",
        f"times: the reference solver's time over ours, {REPEATS} runs of ours; runs: its runs; reference_over_ours: "
        "the fastest reference solver that succeeded over our fastest solver of the class",
        "many in one call: vmap solves the markets together (iterations of Tatonnement and ConvexProgram on strictly "
        "concave valuations one market after the other on a CPU, of others until the last one has converged); map "
        "(`jax.lax.map`) solves one after the other; meet: number of markets that meet the tolerances",
        "over rounds: agents use up what they buy and harvest again, supply varies by 10%; a step is one round of one "
        "economy: trade, production, cash flows, certificate",
    ]
    if not quick:
        report.notes.append(
            "ConvexProgram: only 16 markets under vmap where it is slow; 256 would take more than a quarter of an hour"
        )
    if any(row["reference ms"] == "not installed" for row in beside):
        report.notes.append("CVXPY is not installed; run pip install cvxpy to include it")
    return report


def _tables(report: Report) -> list[list[dict[str, Any]]]:
    """The tables of one market, of the reference solvers, of many markets, and of markets over rounds."""
    return list(report.tables.values())


def _draw(report: Report) -> "Figure":
    """Draw the time per market: the library's solvers, the same in a batch, and the reference solvers."""
    fig, (ax,) = figure(width=7.5, height=6.0)
    single, beside, batch = _tables(report)[:3]
    bars: list[tuple[str, float, str]] = []
    for name in CASES:
        each = {f"{row['solver']}, {row['way']}": row["ms"] for row in batch if row["valuations"] == name}
        bars += [(f"{name}: {row['solver']}", row["ms"], COLORS[0]) for row in single if row["valuations"] == name]
        bars += [(f"{name}: {call}", ms, COLORS[9]) for call, ms in each.items()]
        others = {row["reference"]: row["reference ms"] for row in beside if row["valuations"] == name}
        bars += [(f"{name}: {reference}", ms, COLORS[1]) for reference, ms in others.items() if isinstance(ms, float)]
    places = np.arange(len(bars))[::-1]
    ax.barh(places, [ms for _, ms, _ in bars], color=[color for _, _, color in bars])
    ax.set_yticks(places, [label for label, _, _ in bars], fontsize=7)
    ax.set_xscale("log")
    ax.margins(y=0.01)
    ax.set(xlabel="ms per market\njaxmarket (blue), many in one call (light blue), reference solvers (orange)")
    ax.set_title(next(iter(report.tables)), fontsize=10)
    return fig
