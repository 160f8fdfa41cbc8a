"""Training a society: one update and a chunk of updates as pure functions of one seed."""

import dataclasses
import functools
from typing import Self

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int32

from jaxmarket.auctions import ENVIRONMENT_REWARD
from jaxmarket.collectives import INSTANCES, SEEDS, local_slice, per_shard, pmax, psum
from jaxmarket.environments.adapter import Adapter
from jaxmarket.evaluation import Episodes, bids_by_state, evaluate
from jaxmarket.learners import ActionPPO, Experience, Hyperparameters, Learner
from jaxmarket.learners.actions import ActingState
from jaxmarket.learners.protocol import is_large, modules_at_once, shard, static_part
from jaxmarket.metrics import Oracle, Summary, conservation_residual, gini, saturation, summarize
from jaxmarket.rollouts import rollout
from jaxmarket.settlement import TimeLimits, per_bidder, settle
from jaxmarket.society import MarketPolicy, Society, reset
from jaxmarket.switches import entry_point, in_groups, one_at_a_time, standard_promotion
from jaxmarket.training.divergence import diverged
from jaxmarket.training.settings import Settings
from jaxmarket.training.transfer import networks
from jaxmarket.types import Array, PyTree, Rules, State, Transition, real

__all__ = ["SocietyPlayer", "SocietyTraining", "TrainState", "module_experience"]

_VISITED_FRACTION = 0.1


class TrainState(struct.PyTreeNode):
    """The state of a society's training; one seed."""

    learner: PyTree  # leaves [M, ...], with a field `params`
    market: State  # leaves [B, ...]
    key: Array
    update: Int32[Array, ""]  # updates done
    visits: Float[Array, " S"]  # visits of each state during the last tenth of training; [0] if unknown


_PARTITION = TrainState(
    learner=P(SEEDS), market=P(SEEDS, INSTANCES), key=P(SEEDS), update=P(SEEDS), visits=P(SEEDS)  # type: ignore[arg-type]
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SocietyPlayer:
    """A society in an evaluation, as `Trainable.player` describes it."""

    society: Society

    @property
    def env(self) -> Adapter:
        """The environment."""
        return self.society.env

    def evaluate(
        self, params: PyTree, key: Array, env_params: PyTree, episodes: int, *, greedy: Array | None = None
    ) -> Episodes:
        """`jaxmarket.evaluation.evaluate`."""
        return evaluate(self.society, params, key, env_params, episodes, rules=Rules(greedy=greedy))


@dataclasses.dataclass(frozen=True)
class SocietyTraining:
    """The static part of a society's training, a `jaxmarket.training.trainable.Trainable`.

    Attributes:
        society: the society.
        learner: of each module's bids, with the defaults of its numeric settings, which are traced.
        action_learner: of each module's actions, likewise, if primitives learn.
        instances: parallel market instances.
        horizon: auctions of each instance per update.
        updates_per_chunk: updates per `chunk`.
        time_limits: how settlement treats truncated episodes.
        states: S, if the environment knows Q* over one-hot states; else None.
        chunks: chunks of a whole run; not part of the compiled program.
    """

    society: Society
    learner: Learner
    instances: int
    horizon: int
    updates_per_chunk: int
    time_limits: TimeLimits
    states: int | None
    chunks: int = dataclasses.field(compare=False)
    action_learner: ActionPPO | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The training of the society that the settings describe."""
        society, action_learner = settings.society, settings.action_learner
        society.check_modules()
        # Q* is of actions, and not of modules whose primitives learn.
        q = None if action_learner is not None else settings.adapter.optimal_q(settings.gamma)
        return cls(
            society=society,
            learner=static_part(settings.learner),
            instances=settings.instances,
            horizon=settings.horizon,
            updates_per_chunk=settings.updates_per_chunk,
            time_limits=settings.time_limits,
            states=None if q is None else q.shape[0],
            chunks=settings.chunks,
            action_learner=None if action_learner is None else static_part(action_learner),
        )

    @property
    def env(self) -> Adapter:
        """The environment."""
        return self.society.env

    @property
    def module_axis(self) -> bool:
        """True: bidders of different modules have their own parameters."""
        return True

    @property
    def partition(self) -> TrainState:
        """How a state with a leading axis of seeds is laid out over a mesh."""
        return _PARTITION

    @property
    def initializer(self) -> Self:
        """This training without prices, on which the first state does not depend."""
        return dataclasses.replace(self, society=_without_prices(self.society))

    def shard(self, shards: int) -> Self:
        """This training on one of ``shards`` devices that share the instances."""
        action_learner = None if self.action_learner is None else shard(self.action_learner, shards)
        return dataclasses.replace(self, learner=shard(self.learner, shards), action_learner=action_learner)

    def player(self, *, greedy: bool) -> SocietyPlayer:
        """The society without prices: who acts does not depend on who pays whom."""
        return SocietyPlayer(dataclasses.replace(_without_prices(self.society), greedy=greedy))

    def policy(self, params: PyTree, *, greedy: bool) -> MarketPolicy:
        """The trained society as a policy; ``params`` leaves [M, ...]."""
        return MarketPolicy(params, dataclasses.replace(self.society, greedy=greedy))

    def bids_and_visits(self, state: TrainState) -> tuple[Array, Array] | None:
        """The highest greedy bid of each primitive f [seeds, S, P], and visited states bool [seeds, S], if S is known.

        States count as visited if they were in the last tenth of training.
        """
        if self.states is None:
            return None
        modules = jax.vmap(lambda params: bids_by_state(self.society, params, self.states))(state.learner.params)  # type: ignore[arg-type]
        return modules.reshape(*modules.shape[:2], self.society.primitives, -1).max(-1), state.visits > 0

    @entry_point
    def init(self, key: Array, env_params: PyTree, hyper: Hyperparameters) -> TrainState:
        """The state before the first update."""
        key_learner, key_market, key = jax.random.split(key, 3)
        society = self.society
        obs = jnp.zeros(society.observation.shape, society.observation.dtype)
        start = functools.partial(reset, society, env_params=env_params, rules=hyper.rules(jnp.zeros((), real())))
        market, _ = jax.vmap(start)(jax.random.split(key_market, self.instances))
        keys = jax.random.split(key_learner, society.modules)
        learner = jax.vmap(self.learner.init, (0, None))(keys, obs)
        if self.action_learner is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
            learner = ActingState(bids=learner, actions=jax.vmap(self.action_learner.init, (0, None))(keys, obs))
            if society.learned is not None and society.learned.share_torso:
                learner = learner.with_torso_of_bids()
        return TrainState(
            learner=learner,
            market=market,
            key=key,
            update=jnp.zeros((), jnp.int32),
            visits=jnp.zeros(self.states or 0, real()),
        )

    def _learn(
        self, state: PyTree, experience: Experience, hyper: Hyperparameters, update: Array, progress: Array
    ) -> PyTree:
        """One module's update with its own experience."""
        if self.action_learner is None:
            return self.learner.update(state, experience, hyper, update, progress)[0]
        after = state.learn((self.learner, self.action_learner), experience, hyper, update, progress)
        shared = self.society.learned is not None and self.society.learned.share_torso
        return after.with_one_torso(state) if shared else after

    def _update(
        self, state: TrainState, env_params: PyTree, hyper: Hyperparameters, oracle: Oracle | None
    ) -> tuple[TrainState, tuple[Summary, Array, Array]]:
        """One rollout of every instance, its settlement, and every module's local update.

        Returns:
            The new state, the rollout's summary, its conservation residual, and the share of its winning bids at an
            end of their range.
        """
        society = self.society
        key_roll, key = jax.random.split(state.key)
        progress = state.update / jnp.asarray(hyper.updates, real())
        rules, params = hyper.rules(progress), state.learner.params

        def roll(key: Array, market: State) -> tuple[State, Transition]:
            return rollout(
                society, key, params, market, env_params, self.horizon, rules,
                bootstrap=self.time_limits == "bootstrap",
            )  # fmt: skip

        def earned(rows: Transition) -> PyTree:
            return settle(rows, hyper.discount, trace_decay=hyper.trace_decay, time_limits=self.time_limits)

        keys = local_slice(jax.random.split(key_roll, self.instances), self.learner.axis)
        market, rows = jax.vmap(roll, out_axes=(0, 1))(keys, state.market)
        settlement = jax.vmap(earned, in_axes=1, out_axes=1)(rows)
        experience = module_experience(society, rows, settlement.utility)

        shared, large = experience.of_all(), is_large(params, society.modules)

        update = one_at_a_time(self._learn) if large else self._learn
        number = society.primitive_of_module if self.env.separates_observations else None

        def learn(each: tuple[PyTree, Experience, Array | None]) -> PyTree:
            learner, experience, number = each
            own = experience.replace(**shared)
            if number is not None:
                own = own.replace(obs=jax.vmap(self.env.module_observation, (0, None))(own.obs, number))
            return update(learner, own, hyper, state.update, progress)

        group = society.modules if large else modules_at_once(society.modules, experience.bid[0].size)
        learner = in_groups(learn, (state.learner, experience.replace(**dict.fromkeys(shared)), number), group)
        late = state.update >= jnp.floor((1 - _VISITED_FRACTION) * hyper.updates)
        visits = state.visits
        if self.states is not None:
            visits = visits + jnp.where(late, experience.obs.sum(0), 0)
        residual = jax.vmap(conservation_residual, (1, 0))(rows, state.market.accounts).max()
        saturated = saturation(rows.outcome, *jax.vmap(society.policy.limits)(society.bid_params(params)))
        state = TrainState(learner=learner, market=market, key=key, update=state.update + 1, visits=visits)
        return state, (summarize(rows, settlement, oracle), residual, saturated)

    @standard_promotion
    def chunk(
        self, state: TrainState, env_params: PyTree, hyper: Hyperparameters, oracle: Oracle | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """``updates_per_chunk`` updates and the `jaxmarket.metrics` over them; of one shard after `shard`.

        Args:
            state: of one seed.
            env_params: the environment's parameters.
            hyper: traced settings.
            oracle: Q* and the optimal return, for the metrics that need them (`Settings.oracle`).
        """

        def body(state: TrainState, _: None) -> tuple[TrainState, tuple[Summary, Array, Array]]:
            return self._update(state, env_params, hyper, oracle)

        axis, before = self.learner.axis, state.visits
        state, (summaries, residuals, saturated) = jax.lax.scan(body, state, None, length=self.updates_per_chunk)
        wealth = state.market.accounts.wealth.sum(0)
        summary, new_visits, wealth, share = psum(
            (
                jax.tree.map(lambda x: x.sum(0), summaries),
                state.visits - before,
                wealth,
                per_shard(saturated.mean(), axis),
            ),
            axis,
        )
        accounts = {
            "gini": gini(wealth),
            "conservation_residual": pmax(residuals.max(), axis),
            "saturation": share,
            "diverged": diverged(networks(state.learner), summary.totals.reward),
        }
        return state.replace(visits=before + new_visits), summary.means(oracle) | accounts


def _without_prices(society: Society) -> Society:
    """The society with one mechanism in place of any: programs in which nobody's money matters are then equal."""
    return dataclasses.replace(society, mechanism=ENVIRONMENT_REWARD)


def module_experience(society: Society, trajectory: Transition, utility: Array) -> Experience:
    """Each module's own view of rows [T, B], with N = T · B: what is the same for all [N, ...], the rest [M, R, N]."""
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
        choice=None if t.choice is None else t.choice.reshape(-1, *t.choice.shape[2:]),
        legal=None if t.legal is None else t.legal.reshape(-1, t.legal.shape[-1]),
        held=None if t.held is None else t.held.reshape(-1),
    )
