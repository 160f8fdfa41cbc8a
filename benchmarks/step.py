"""Speed of rollouts, and the market tax.

One step is one auction and one environment step of one instance. Three programs are timed alternately: the society; the
same environment with random actions; and the same environment with the same stacked networks and sampled bids, but
without auction and payments (a random primitive acts). The market tax is the time of the first over that of the last.
All three write their rows to memory.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import Report, Timing, in_a_row, measure
from jaxmarket.rollouts import rollout, rollout_policy, start
from jaxmarket.society import Draws, Society, draw, reset
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.pinned import train_config
from jaxmarket.types import Array, PyTree
from jaxmarket.view.tables import progress

__all__ = ["TAX", "Case", "add_case", "market_rollout", "programs", "run", "time_case"]


_IMAGES = ("Breakout-MinAtar",)


@dataclasses.dataclass(frozen=True)
class Case:
    """One size of one society."""

    env: str = "CartPole-v1"
    clones: int = 2
    instances: int = 1024
    hidden: tuple[int, ...] = (64, 64)
    share: bool = True
    horizon: int = 128

    @property
    def config(self) -> TrainConfig:
        """The paper's settings for a society of this size."""
        layers: dict[str, Any] = {"hidden": self.hidden}
        if self.env in _IMAGES:
            layers |= {"convolutions": (16,), "stride": 1}
        shape: dict[str, Any] = {"instances": self.instances, "horizon": self.horizon, "minibatch": self.instances}
        return train_config(self.env, clones=self.clones, share_clones=self.share, **layers, **shape)

    @property
    def society(self) -> Society:
        """The society that these settings describe."""
        return self.config.settings.society


TAX = Case()
"""CartPole, four bidders, 1,024 instances, two hidden layers of 64."""


def cases(quick: bool) -> list[Case]:
    """The case `TAX`, variants of it with one changed size, and other environments."""
    if quick:
        return [TAX, Case("Chain-v0", hidden=(16,))]
    vary = [
        *({"clones": clones} for clones in (1, 8)),
        {"share": False},
        *({"instances": instances} for instances in (64, 8192)),
        *({"hidden": hidden} for hidden in ((16,), (256, 256))),
    ]
    others = [
        Case("Bandit-v0", hidden=(16,)),
        Case("Chain-v0", hidden=(16,)),
        Case("Duality-v0", hidden=(16,)),
        Case("Acrobot-v1"),
        Case("Breakout-MinAtar", hidden=(64,), instances=256, horizon=32),
    ]
    return [TAX, *(dataclasses.replace(TAX, **change) for change in vary), *others]


def scrambled(params: PyTree, key: Array) -> PyTree:
    """Parameters with added noise, so that untrained bidders have different bids."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


Rollout = Callable[[Array, PyTree], tuple[PyTree, PyTree]]


def market_rollout(society: Society, params: PyTree, instances: int, horizon: int) -> Rollout:
    """One rollout of all instances: states [B, ...], rows [T, B, ...]."""
    env_params = society.env.default_params

    def instance_rollout(key: Array, state: PyTree) -> tuple[PyTree, PyTree]:
        return rollout(society, key, params, state, env_params, horizon)

    return lambda key, states: jax.vmap(instance_rollout, out_axes=(0, 1))(jax.random.split(key, instances), states)


def programs(case: Case) -> dict[str, tuple[Rollout, PyTree]]:
    """The rollouts of all instances and their initial states, for ``society``, ``networks`` and ``environment``."""
    society, env, horizon = case.society, case.society.env, case.horizon
    env_params = env.default_params
    params = jax.jit(lambda: scrambled(society.init(jax.random.key(0)), jax.random.key(1)))()
    keys = jax.random.split(jax.random.key(2), case.instances)

    def without(networks: bool) -> Any:
        def act(draws: Draws, obs: Array) -> tuple[Array, PyTree]:
            action = (draws.tie * society.primitives).astype(jnp.int32)
            return action, (action, society.bids(params, draws, obs)) if networks else action

        def instance_rollout(key: Array, running: PyTree) -> tuple[PyTree, PyTree]:
            key_draw, key_env = jax.random.split(key)
            return rollout_policy(env, act, key_env, running, env_params, draw(society, key_draw, (horizon,)))

        rollouts = jax.vmap(instance_rollout, out_axes=(0, 1))
        return lambda key, running: rollouts(jax.random.split(key, case.instances), running)

    states = jax.jit(jax.vmap(lambda key: reset(society, key, env_params)[0]))(keys)
    running = jax.jit(jax.vmap(lambda key: start(env, key, env_params)))(keys)
    return {
        "society": (market_rollout(society, params, case.instances, horizon), states),
        "networks": (without(networks=True), running),
        "environment": (without(networks=False), running),
    }


def time_case(case: Case, repeats: int = 10, steps_per_call: int = 400_000) -> tuple[dict[str, Timing], int]:
    """The timings of the three programs, and the number of steps of a call."""
    count = max(1, steps_per_call // (case.instances * case.horizon))
    key = jax.random.key(3)
    timings = measure(
        {name: (in_a_row(rollout, count), (key, state)) for name, (rollout, state) in programs(case).items()}, repeats
    )
    return timings, count * case.instances * case.horizon


def add_case(report: Report, case: Case, repeats: int = 10, steps_per_call: int = 400_000) -> dict[str, Any]:
    """Measure a case; returns its row, which is added to the report."""
    timings, steps = time_case(case, repeats, steps_per_call)
    report.keep(str(case), timings)
    society, networks, environment = (timings[n] for n in ("society", "networks", "environment"))
    row = {
        "env": case.env,
        "A": case.society.bidders,
        "B": case.instances,
        "net": "×".join(map(str, case.hidden)) + ("" if case.share else f" ×{case.society.modules}"),
        "M/s": steps / society.median / 1e6,
        "± %": 100 * society.iqr / society.median,
        "no market": steps / networks.median / 1e6,
        "env only": steps / environment.median / 1e6,
        "tax": society.median / networks.median,
    }
    report.tables.setdefault("rollouts, million environment steps per second", []).append(row)
    return row


def run(quick: bool = False) -> Report:
    """Measure every case."""
    report = Report("step")
    rows = []
    todo = cases(quick)
    with progress("step", unit="cases") as show:
        for done, case in enumerate(todo):
            show(done, len(todo), f"{case.env}, {case.instances} instances")
            rows.append(add_case(report, case, repeats=20 if case == TAX else 10))
        show(len(todo), len(todo))
    report.headline = {"market_tax": rows[0]["tax"], "steps_per_second": 1e6 * rows[0]["M/s"]}
    report.notes.append(
        "A bidders (64×64 ×4: a network each), B instances, ± interquartile range; no market: same networks and bids; "
        "env only: random actions"
    )
    report.notes.append(
        f"market_tax: {TAX.env}, {TAX.society.bidders} bidders (2 clones sharing), {TAX.instances} instances, "
        f"horizon {TAX.horizon}, two hidden layers of 64"
    )
    return report
