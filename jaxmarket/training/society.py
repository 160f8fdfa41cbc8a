"""Training as pure functions: one update, a chunk of updates, a whole run.

`train` is one seed, made of `chunk` calls inside one scan; `jaxmarket.runs.fitting.fit` maps the very same
`chunk` over seeds and calls it from Python.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec as P

from jaxmarket.collectives import INSTANCES, SEEDS, local_slice, pmax, psum
from jaxmarket.environments.adapter import Adapter
from jaxmarket.learners import Experience, Hyperparameters, Learner
from jaxmarket.learners.protocol import shard
from jaxmarket.metrics import Oracle, Summary, conservation_residual, gini, summarize
from jaxmarket.rollouts import rollout
from jaxmarket.settlement import TimeLimits, per_bidder, settle
from jaxmarket.society import Society, reset
from jaxmarket.switches import entry_point, standard_promotion
from jaxmarket.training.config import TrainConfig, check_config
from jaxmarket.training.divergence import diverged
from jaxmarket.training.transfer import networks
from jaxmarket.types import Array, PyTree, Rules, State, Transition, real
from jaxmarket.validation import as_float_array, check_key, short_repr

__all__ = [
    "PARTITION",
    "Program",
    "TrainState",
    "as_arrays",
    "chunk",
    "experience_of",
    "init",
    "oracle_of",
    "rules_at",
    "train",
]

_VISITED_FRACTION = 0.1


@dataclasses.dataclass(frozen=True)
class Program:
    """The static part of a training run; equal programs share their compiled code, however long they run."""

    society: Society
    learner: Learner
    instances: int
    horizon: int
    updates_per_chunk: int
    time_limits: TimeLimits
    states: int | None  # S where the environment knows Q* over one-hot states, else None
    chunks: int = dataclasses.field(compare=False)  # how often the host calls; not compiled in

    @classmethod
    def of(cls, config: TrainConfig) -> "Program":
        """The program a configuration describes.

        Raises:
            ValueError: it describes a monolithic agent.
        """
        if check_config(config).agent != "society":
            raise ValueError(f"agent: {config.agent!r} is no society; train it with jaxmarket.fit, or baselines.chunk")
        q = config.adapter.optimal_q(config.gamma)
        return cls(
            society=config.society,
            learner=config.learner_rule,
            instances=config.instances,  # type: ignore[arg-type]
            horizon=config.horizon,  # type: ignore[arg-type]
            updates_per_chunk=config.updates_per_chunk,
            time_limits=config.time_limits,  # type: ignore[arg-type]
            states=None if q is None else q.shape[0],
            chunks=config.chunks,
        )

    def spread(self, shards: int) -> "Program":
        """The program of one of so many shards, each with its part of the instances."""
        return dataclasses.replace(self, learner=shard(self.learner, shards))

    @property
    def env(self) -> Adapter:
        """The environment."""
        return self.society.env

    @property
    def updates(self) -> int:
        """Updates of a whole run."""
        return self.chunks * self.updates_per_chunk

    @property
    def env_steps(self) -> int:
        """Auctions of a whole run, one environment step each where primitives are literal actions."""
        return self.updates * self.instances * self.horizon


class TrainState(struct.PyTreeNode):
    """Everything a run needs to go on; one seed."""

    learner: PyTree  # leaves [M, ...], with a field `params`
    market: State  # leaves [B, ...]
    key: Array
    update: Array  # i32 [] updates done
    visits: Array  # f [S] visits of each state during the last tenth of training; [0] if unknown


PARTITION = TrainState(learner=P(SEEDS), market=P(SEEDS, INSTANCES), key=P(SEEDS), update=P(SEEDS), visits=P(SEEDS))  # type: ignore[arg-type]
"""How a state with a leading seed axis lies over a mesh."""


@entry_point
def init(program: Program, key: Array, env_params: PyTree, hyper: Hyperparameters) -> TrainState:
    """The state before the first update."""
    key_learner, key_market, key = jax.random.split(key, 3)
    society = program.society
    obs = jnp.zeros(society.observation.shape, society.observation.dtype)
    start = functools.partial(reset, society, env_params=env_params, rules=rules_at(hyper, jnp.zeros((), real())))
    market, _ = jax.vmap(start)(jax.random.split(key_market, program.instances))
    return TrainState(
        learner=jax.vmap(program.learner.init, (0, None))(jax.random.split(key_learner, society.modules), obs),
        market=market,
        key=key,
        update=jnp.zeros((), jnp.int32),
        visits=jnp.zeros(program.states or 0, real()),
    )


def rules_at(hyper: Hyperparameters, progress: Array) -> Rules:
    """The market's rules after that fraction of training: exploration falls linearly over its first half."""
    exploration = hyper.exploration
    if exploration is not None and hyper.exploration_final is not None:
        exploration = exploration + (hyper.exploration_final - exploration) * jnp.minimum(1, 2 * progress)
    return Rules(exploration=exploration, reserve=hyper.reserve, dropout=hyper.dropout, present=hyper.present)


def experience_of(society: Society, trajectory: Transition, utility: Array) -> Experience:
    """Each module's own view of rows [T, B]: obs [N, ...], the rest [M, R, N], with N = T · B."""
    t, winner = trajectory, trajectory.outcome.winner

    def by_module(value: Array) -> Array:
        return value.reshape(-1, society.modules, society.members).transpose(1, 2, 0)

    return Experience(
        obs=t.obs.reshape(-1, *t.obs.shape[2:]),
        bid=by_module(t.outcome.bids),
        eligible=by_module(t.outcome.eligible),
        won=by_module(winner[..., None] == jnp.arange(society.bidders)),
        price=by_module(per_bidder(t.price, winner, society.bidders)),
        utility=by_module(per_bidder(utility, winner, society.bidders)),
    )


_AXES = Experience(obs=None, bid=0, eligible=0, won=0, price=0, utility=0)  # type: ignore[arg-type]  axes, not arrays


def _update(
    program: Program, state: TrainState, env_params: PyTree, hyper: Hyperparameters, oracle: Oracle | None
) -> tuple[TrainState, tuple[Summary, Array]]:
    """One rollout of every instance, its settlement, and every module's local update.

    Returns:
        The new state, the rollout's summary and its conservation residual.
    """
    society = program.society
    key_roll, key = jax.random.split(state.key)
    progress = state.update / jnp.asarray(hyper.updates, real())
    rules = rules_at(hyper, progress)

    def roll(key: Array, market: State) -> tuple[State, Transition]:
        return rollout(
            society, key, state.learner.params, market, env_params, program.horizon, rules,
            bootstrap=program.time_limits == "bootstrap",
        )  # fmt: skip

    def earned(rows: Transition) -> PyTree:
        return settle(rows, hyper.discount, trace_decay=hyper.trace_decay, time_limits=program.time_limits)

    keys = local_slice(jax.random.split(key_roll, program.instances), program.learner.axis)
    market, rows = jax.vmap(roll, out_axes=(0, 1))(keys, state.market)
    settlement = jax.vmap(earned, in_axes=1, out_axes=1)(rows)
    experience = experience_of(society, rows, settlement.utility)

    def learn(learner: PyTree, experience: Experience) -> tuple[PyTree, dict[str, Array]]:
        return program.learner.update(learner, experience, hyper, state.update, progress)

    learner, _ = jax.vmap(learn, in_axes=(0, _AXES))(state.learner, experience)
    late = state.update >= jnp.floor((1 - _VISITED_FRACTION) * hyper.updates)
    visits = state.visits
    if program.states is not None:
        visits = visits + jnp.where(late, experience.obs.sum(0), 0)
    residual = jax.vmap(conservation_residual, (1, 0))(rows, state.market.accounts).max()
    state = TrainState(learner=learner, market=market, key=key, update=state.update + 1, visits=visits)
    return state, (summarize(rows, settlement, oracle), residual)


@standard_promotion
def chunk(
    program: Program, state: TrainState, env_params: PyTree, hyper: Hyperparameters, oracle: Oracle | None = None
) -> tuple[TrainState, dict[str, Array]]:
    """``updates_per_chunk`` updates and the `metrics` over them; of one shard, where the program is `Program.spread`.

    Args:
        program: the static part of the run.
        state: of one seed.
        env_params: the environment's parameters.
        hyper: traced settings.
        oracle: what a solver knows, for the metrics that need it; see `oracle_of`.
    """

    def body(state: TrainState, _: None) -> tuple[TrainState, tuple[Summary, Array]]:
        return _update(program, state, env_params, hyper, oracle)

    axis, before = program.learner.axis, state.visits
    state, (summaries, residuals) = jax.lax.scan(body, state, None, length=program.updates_per_chunk)
    summary, new_visits, wealth = psum(
        (jax.tree.map(lambda x: x.sum(0), summaries), state.visits - before, state.market.accounts.wealth.sum(0)), axis
    )
    accounts = {
        "gini": gini(wealth),
        "conservation_residual": pmax(residuals.max(), axis),
        "diverged": diverged(networks(state.learner), summary.totals.reward),
    }
    return state.replace(visits=before + new_visits), summary.means(oracle) | accounts


def oracle_of(config: TrainConfig) -> Oracle | None:
    """What a solver knows about the environment at the configuration's discount; None if it knows nothing."""
    q = config.adapter.optimal_q(config.gamma)
    if q is None:
        return None
    return Oracle(
        q=jnp.asarray(q, real()), optimal_return=jnp.asarray(config.adapter.optimal_return(config.gamma), real())
    )


@entry_point
def train(
    config: TrainConfig, key: Array, hyper: Hyperparameters | None = None, env_params: PyTree = None
) -> tuple[TrainState, dict[str, Array]]:
    """The whole run of one seed as one pure function.

    ``jax.jit(train, static_argnums=0)`` it; ``jax.vmap(lambda key: train(config, key))(keys)`` runs many
    seeds, and ``jax.vmap(lambda rate: train(config, key, config.hyperparameters.replace(learning_rate=rate)))(rates)``
    sweeps over a traced setting, with one compilation. Metrics that need Q* take the configuration's discount.

    Args:
        config: the settings.
        key: a typed PRNG key.
        hyper: traced settings; those of ``config`` if None.
        env_params: the environment's parameters, traced, so that ``vmap`` can train on many at once; its defaults if
            None. Metrics that need exact values, which are those of the defaults, are omitted for other parameters.

    Returns:
        The final state, and metrics with one entry per chunk.

    Raises:
        ValueError: an argument has the wrong type, or ``hyper`` does not contain one number per setting.
    """
    key = check_key("key", key)
    program = Program.of(config)
    hyper = as_arrays(config.hyperparameters if hyper is None else hyper)
    oracle = oracle_of(config) if env_params is None else None
    env_params = config.adapter.parameters(env_params)

    def body(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
        return chunk(program, state, env_params, hyper, oracle)

    return jax.lax.scan(body, init(program, key, env_params, hyper), None, length=program.chunks)


def as_arrays(hyper: Hyperparameters) -> Hyperparameters:
    """Settings as arrays of the working precision (masks stay masks), so that equal shapes are equal programs."""
    if not isinstance(hyper, Hyperparameters):
        raise ValueError(
            f"hyper: expected Hyperparameters, got {short_repr(hyper)}; use config.hyperparameters.replace(...)"
        )
    settings = {f.name: getattr(hyper, f.name) for f in dataclasses.fields(hyper)}
    for field in dataclasses.fields(hyper):
        if settings[field.name] is None and field.default is not None:
            raise ValueError(f"hyper.{field.name}: expected a number, got None; its default is {field.default}")
    arrays = {
        name: jnp.asarray(value) if name == "present" else as_float_array(f"hyper.{name}", value, ())
        for name, value in settings.items()
        if value is not None
    }
    return hyper.replace(**arrays)
