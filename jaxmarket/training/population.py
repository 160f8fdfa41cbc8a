"""Training a population: a deep market, in which agents are selected by wealth, as a run like any other.

An update is a round of `deep_market.run`: ``horizon`` auctions of every instance, followed by deaths and births. What
is learned is the population: its agents, and the wealth that limits their bids. Agents themselves learn only if their
representation does (`jaxmarket.training.learning_agents`). An evaluation plays with the population as it is.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int, Int32

from jaxmarket import deep_market
from jaxmarket.auctions import BUCKET_BRIGADE
from jaxmarket.collectives import SEEDS
from jaxmarket.deep_market import (
    BidTables,
    DeepMarket,
    DeepMarketState,
    NeuralNetworks,
    Population,
    Representation,
    RoundSummary,
    Terms,
)
from jaxmarket.environments.adapter import Adapter
from jaxmarket.evaluation import Episodes, play_episodes
from jaxmarket.learners import Hyperparameters
from jaxmarket.metrics import Oracle, Totals
from jaxmarket.rollouts import EnvCarry
from jaxmarket.switches import entry_point, standard_promotion
from jaxmarket.training.divergence import diverged
from jaxmarket.training.settings import OF_PRIMITIVES, Settings
from jaxmarket.training.trainable import TrainableDefaults
from jaxmarket.types import NOBODY, Array, PyTree, real
from jaxmarket.validation import check_bool, check_float, check_int, short_repr

__all__ = [
    "PopulationAgents",
    "PopulationLearner",
    "PopulationPlayer",
    "PopulationPolicy",
    "PopulationTrainState",
    "PopulationTraining",
]

_TERMS = Terms(wealth_tax=1e-3, birth_rate=0.3, inheritance=0.1, replace_poorest=True)
_WEALTH = "wealth"
_METHODS = ("init", "bid", "act", "mutate", "cost")  # of a representation


def _is_representation(value: Any) -> bool:
    return all(hasattr(value, name) for name in _METHODS)


def _is_terms(value: Any) -> bool:
    return value is Terms or isinstance(value, Terms)


@dataclasses.dataclass(frozen=True)
class PopulationAgents:
    """Agents selected by wealth, for ``TrainConfig(env, agent=PopulationAgents(...))``.

    Of the settings of `jaxmarket.TrainConfig`, auction, seeds, steps, instances, horizon (auctions of each instance
    between two turnovers) and log_every apply.

    Attributes:
        representation: how agents are encoded; by default `BidTables` for one-hot observations, otherwise
            `NeuralNetworks`.
        capacity: N, slots for agents.
        terms: the economic settings. They are traced: agents that differ only in numbers share compiled programs. By
            default newborns replace the poorest agents, and a tax on wealth limits the amount of money.
        max_births: K, the most births in a turnover; with 0 no agent dies either.
        num_agents: random agents at the beginning; as many as there are slots by default.
        wealth: of each of them; traced.

    Raises:
        ValueError: a field is out of range or of another kind.
    """

    representation: Representation | None = None
    capacity: int = 64
    terms: Terms = _TERMS
    max_births: int = 1
    num_agents: int | None = None
    wealth: float = 1.0

    unused: ClassVar[tuple[str, ...]] = (
        *OF_PRIMITIVES,
        *("learner", "clones", "gamma", "share_clones", "minibatch", "epochs", "learning_rate", "value_learning_rate"),
        *(
            "entropy",
            "clip",
            "trace_decay",
            "exploration",
            "exploration_final",
            "persistence",
            "dropout",
            "reserve",
            "bids",
            "bid_low",
        ),
        *("bid_high", "hidden", "convolutions", "stride", "time_limits", "ties"),
    )
    defaults: ClassVar[Mapping[str, Any]] = {"auction": "bb", "steps": 1_024_000, "instances": 16, "horizon": 16}
    parts: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"representation": _is_representation, "terms": _is_terms}

    def __post_init__(self) -> None:
        put = object.__setattr__
        if self.representation is not None and (
            isinstance(self.representation, type) or not _is_representation(self.representation)
        ):
            raise ValueError(
                f"representation: expected an object with {', '.join(_METHODS)}, got "
                f"{short_repr(self.representation)}; use one of jaxmarket.deep_market.representations"
            )
        if not isinstance(self.terms, Terms):
            raise ValueError(f"terms: expected Terms, got {short_repr(self.terms)}; write Terms(rent=0.01)")
        plain = {}
        for field in dataclasses.fields(self.terms):
            value = getattr(self.terms, field.name)
            if field.name == "replace_poorest" and value is not None:
                plain[field.name] = check_bool(f"terms.{field.name}", value)
            elif value is not None:
                plain[field.name] = check_float(f"terms.{field.name}", value)
        put(self, "terms", Terms(**plain))
        put(self, "capacity", check_int("capacity", self.capacity))
        put(self, "max_births", check_int("max_births", self.max_births, 0, self.capacity))
        if self.num_agents is not None:
            put(self, "num_agents", check_int("num_agents", self.num_agents, 0, self.capacity))
        put(self, "wealth", check_float("wealth", self.wealth, 0))

    @property
    def numbers(self) -> dict[str, float]:
        """The traced numbers: the terms that are in force, and the wealth of the first agents."""
        terms = {name: float(value) for name, value in dataclasses.asdict(self.terms).items() if value is not None}
        return terms | {_WEALTH: self.wealth}

    def of(self, settings: Settings) -> "PopulationTraining":
        """The training of a population in the environment of the settings.

        Raises:
            ValueError: the default representation does not fit the environment.
        """
        env, obs = settings.adapter, settings.adapter.observation
        representation = self.representation
        if representation is None:
            if len(obs.shape) != 1:
                raise ValueError(
                    f"env: the default agents of a population need observations [n], {env.name} has shape {obs.shape}; "
                    "give PopulationAgents a representation"
                )
            kind = BidTables if env.one_hot else NeuralNetworks
            representation = kind(obs.shape[0], env.num_actions)
        market = DeepMarket(
            env, representation, self.capacity, settings.instances, mechanism=settings.society.mechanism
        )
        names = tuple(f.name for f in dataclasses.fields(Terms) if getattr(self.terms, f.name) is not None)
        return PopulationTraining(
            market=market,
            terms=names,
            max_births=self.max_births,
            num_agents=self.capacity if self.num_agents is None else self.num_agents,
            horizon=settings.horizon,
            updates_per_chunk=settings.updates_per_chunk,
            chunks=settings.chunks,
        )


class PopulationLearner(struct.PyTreeNode):
    """What a run learns; a population takes the place of the parameters of policies."""

    params: Population


class PopulationTrainState(struct.PyTreeNode):
    """The state of a population's training; one seed."""

    learner: PopulationLearner
    market: DeepMarketState  # without its population, which is ``learner.params``
    key: Array
    update: Int32[Array, ""]  # rounds done


_PARTITION = PopulationTrainState(learner=P(SEEDS), market=P(SEEDS), key=P(SEEDS), update=P(SEEDS))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class PopulationPlayer:
    """A population in an evaluation: no money moves, and agents bid as their wealth allows, also those on probation.

    Attributes:
        market: the market, of which only the environment, the representation and the number of instances matter.
        fixed_bids: whether bids are fixed at entry (`Terms.markup`).
    """

    market: DeepMarket
    fixed_bids: bool

    @property
    def env(self) -> Adapter:
        """The environment."""
        return self.market.env

    def act(
        self, population: Population, key: Array, obs: Float[Array, "..."], env_state: PyTree, env_params: PyTree
    ) -> Int[Array, ""]:
        """The action for one encoded observation.

        ``key`` breaks ties, and draws the action where no agent bids.
        """
        terms = Terms(markup=0.0 if self.fixed_bids else None)  # the number matters to new agents only
        state = jax.tree.map(lambda leaf: leaf[None], env_state)
        _, _, actions = deep_market.forward(self.market, key, population, obs[None], state, env_params, terms)
        return actions[0]

    @standard_promotion
    def evaluate(
        self, params: Population, key: Array, env_params: PyTree, episodes: int, *, greedy: Array | None = None
    ) -> Episodes:
        """Play new episodes, as `jaxmarket.evaluation.evaluate` does with a society; bids are always greedy."""
        del greedy

        def act(key: Array, running: EnvCarry) -> Array:
            return self.act(params, key, running.obs, running.env_state, env_params)

        return play_episodes(self.env, act, key, env_params, episodes)


class PopulationPolicy(struct.PyTreeNode):
    """A population as a policy: ``obs -> action``, the action of the highest bidder.

    Attributes:
        params: the population.
        player: its market.
    """

    params: Population
    player: PopulationPlayer = struct.field(pytree_node=False)

    @standard_promotion
    def __call__(self, obs: PyTree, key: Array | None = None) -> Int[Array, ""]:
        """The action for one raw observation of the environment.

        ``key`` breaks ties, and draws the action where no agent bids; without one both are the same in every call.
        """
        key = jax.random.key(0) if key is None else key
        return self.player.act(self.params, key, self.player.env.encode(obs), None, None)


@dataclasses.dataclass(frozen=True)
class PopulationTraining(TrainableDefaults):
    """The static part of a population's training, a `jaxmarket.training.trainable.Trainable`.

    A step of a run is one auction of one instance, as in a society.

    Attributes:
        market: the deep market.
        terms: names of the terms that are in force; their numbers are traced, in ``hyper.own``.
        max_births: the most births in a turnover.
        num_agents: random agents at the beginning.
        horizon: auctions of each instance between two turnovers.
        updates_per_chunk: rounds per `chunk`.
        chunks: chunks of a whole run; not part of the compiled program.
    """

    market: DeepMarket
    terms: tuple[str, ...]
    max_births: int
    num_agents: int
    horizon: int
    updates_per_chunk: int
    chunks: int = dataclasses.field(compare=False)

    @property
    def env(self) -> Adapter:
        """The environment."""
        return self.market.env

    @property
    def instances(self) -> int:
        """Parallel instances, which share one table of wealth."""
        return self.market.instances

    @property
    def partition(self) -> PopulationTrainState:
        """How a state with a leading axis of seeds is laid out over a mesh."""
        return _PARTITION

    def shard(self, shards: int) -> NoReturn:
        """Not possible: the instances of a seed share the wealth of its agents.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"devices: the instances of a population share one table of wealth, so {shards} devices cannot share a "
            "seed; use a number of devices that divides the number of seeds"
        )

    def player(self, *, greedy: bool) -> PopulationPlayer:
        """The population without prices; its bids are deterministic, whether greedy or not."""
        del greedy
        return PopulationPlayer(dataclasses.replace(self.market, mechanism=BUCKET_BRIGADE), "markup" in self.terms)

    def policy(self, params: Population, *, greedy: bool) -> PopulationPolicy:
        """The population as a policy.

        Raises:
            ValueError: the environment has illegal actions, which a policy of observations cannot know.
        """
        if self.env.restricts_actions:
            raise ValueError(
                f"env: {self.env.name} has illegal actions, which the policy of a population cannot avoid; use evaluate"
            )
        return PopulationPolicy(params, self.player(greedy=greedy))

    @entry_point
    def init(self, key: Array, env_params: PyTree, hyper: Hyperparameters) -> PopulationTrainState:
        """The state before the first round: random agents with the same wealth."""
        key_market, key = jax.random.split(key)
        wealth = jnp.asarray(hyper.own[_WEALTH], real())
        market = deep_market.init(self.market, key_market, env_params, num_agents=self.num_agents, wealth=wealth)
        return PopulationTrainState(
            learner=PopulationLearner(market.population),
            market=market.replace(population=None),
            key=key,
            update=jnp.zeros((), jnp.int32),
        )

    @standard_promotion
    def chunk(
        self, state: PopulationTrainState, env_params: PyTree, hyper: Hyperparameters, oracle: Oracle | None = None
    ) -> tuple[PopulationTrainState, dict[str, Array]]:
        """``updates_per_chunk`` rounds, and those of the `jaxmarket.metrics` over them that apply.

        ``oracle`` is not used.
        """
        del oracle
        key_run, key = jax.random.split(state.key)
        terms: dict[str, Any] = {name: hyper.own[name] for name in self.terms}
        if "replace_poorest" in terms:
            terms["replace_poorest"] = jnp.asarray(terms["replace_poorest"]) > 0
        population = state.learner.params
        # A population that comes from another run goes on at its own time.
        time = jnp.maximum(state.market.time, population.won.max())
        market = state.market.replace(population=population, time=time)
        after, rounds = deep_market.run(
            self.market,
            key_run,
            market,
            env_params,
            Terms(**terms),
            rounds=self.updates_per_chunk,
            period=self.horizon,
            max_births=self.max_births,
        )
        metrics = _metrics(rounds, deep_market.money(market), after.population)
        state = PopulationTrainState(
            learner=PopulationLearner(after.population),
            market=after.replace(population=None),
            key=key,
            update=state.update + self.updates_per_chunk,
        )
        return state, metrics


def _metrics(rounds: RoundSummary, opened: Array, population: Population) -> dict[str, Array]:
    """The metrics of rounds [R] that began with that much money and ended with this population."""
    flows, sums = (jax.tree.map(lambda x: x.sum(0), part) for part in (rounds.flows, rounds.statistics))
    totals = Totals(
        steps=sums.steps,
        decisions=sums.auctions,
        episodes=sums.episodes,
        returns=sums.returns,
        lengths=sums.lengths,
        terminations=sums.terminated,
        reward=flows["reward"],
    )
    closed, alive = rounds.money[-1], population.alive

    def living(leaf: Array) -> Array:
        return jnp.where(alive.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.zeros((), leaf.dtype))

    agents = jax.tree.map(living, (population.agents, population.wealth))
    return totals.means() | {
        "auction_revenue": flows["sales"] / sums.auctions,
        "subsidy": flows["subsidy"] / sums.auctions,
        "unsold": sums.unsold / sums.auctions,
        "num_agents": rounds.num_agents[-1].astype(real()),
        "births": (rounds.births.ident != NOBODY).sum(dtype=real()),
        "deaths": rounds.births.deaths.sum(dtype=real()),
        "money": closed,
        "gini": rounds.gini[-1],
        "conservation_residual": flows.residual(opened, closed, jnp.abs(closed)),
        "diverged": diverged(agents, flows["reward"] + sums.returns),
    }
