"""Training a wide market: bidders that buy goods in parallel learn what each good is worth.

The environment has L production lines. The piece of work on a line is a good with its own price and its own owner. In
a round the piece of every line is sold in a sealed-bid auction among the bidders of that line, and every winner applies
its operation to the piece that it bought. A bidder is attached to one *job*, a line and an operation, and its bid for a
piece depends on the piece's stage. It learns as the bidders of a society do: it bids the revenue of past purchases.

The market is continuing: during training there are no episodes, and pieces, owners and wealth persist. An evaluation
plays episodes from raw pieces.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int, Int32

from jaxmarket import wide_market
from jaxmarket.auctions import Mechanism
from jaxmarket.collectives import INSTANCES, SEEDS, local_slice, pmax, psum
from jaxmarket.environments.adapter import Adapter
from jaxmarket.evaluation import Episodes
from jaxmarket.learners import Experience, Hyperparameters, Learner
from jaxmarket.learners.protocol import static_part
from jaxmarket.metrics import Oracle, gini
from jaxmarket.policies import BidPolicy
from jaxmarket.settlement import lambda_returns
from jaxmarket.switches import entry_point, standard_promotion
from jaxmarket.training.divergence import diverged
from jaxmarket.training.settings import OF_PRIMITIVES, Settings
from jaxmarket.training.trainable import TrainableDefaults
from jaxmarket.training.transfer import networks
from jaxmarket.types import Array, PyTree, real, tree_select
from jaxmarket.wide_market import Additive, SealedBids

__all__ = [
    "LineProduction",
    "LineSale",
    "ProductionLines",
    "StageBids",
    "WideMarketTrainState",
    "WideMarketTraining",
    "WidePolicy",
    "WideSociety",
    "Worker",
    "effects",
    "workers",
]

CREDIT = 1e4
"""Initial wealth of every bidder, so large that wealth does not limit bids."""
_MOST_STEPS = 100_000  # of an evaluation


class ProductionLines(Protocol):
    """What a wide market needs of an environment besides gymnax's methods, such as `environments.SupplyChain`.

    There are L lines with a piece of work each, at one of K stages; a reset puts every piece at stage 0. An observation
    is the stages, one-hot, line by line: f [L * K]. The environment's parameters have a field
    ``max_steps_in_episode``.

    Attributes:
        lines, stages, operations: L, K, M.
        joint: whether an action is an operation for every line, a number in base M with line 0 first, instead of a line
            and an operation.
    """

    lines: int
    stages: int
    operations: int
    joint: bool

    def transform(
        self, line: Int[Array, "..."], stage: Int[Array, "..."], operation: Int[Array, "..."], params: PyTree
    ) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
        """The stage that an operation takes a piece to, and the reward."""
        ...


_NEEDED = ("lines", "stages", "operations", "joint", "transform")


def _lines(env: Adapter) -> ProductionLines:
    """The environment's production lines.

    Raises:
        ValueError: the environment has none.
    """
    missing = [name for name in _NEEDED if not hasattr(env.env, name)]
    if not hasattr(env.default_params, "max_steps_in_episode"):
        missing.append("default_params.max_steps_in_episode")
    if missing:
        raise ValueError(
            f"env: a wide market needs production lines, {env.name} has no {', '.join(missing)}; use SupplyChain2-v0, "
            "or an environment with the attributes of training.wide.ProductionLines"
        )
    return env.env


class Worker(struct.PyTreeNode):
    """A bidder of a wide market; one, or leaves [N, ...]."""

    line: Int32[Array, ""]  # its line
    operation: Int32[Array, ""]  # its operation
    values: Float[Array, " K"]  # its bids for a piece of its line at each stage


def workers(lines: ProductionLines, values: Float[Array, "jobs K"], clones: int) -> Worker:
    """Bidders ordered as those of a society: bidder a is clone ``a % clones`` of job ``a // clones``.

    Args:
        lines: the production lines.
        values: bids of each job.
        clones: bidders per job.
    """
    job = jnp.arange(lines.lines * lines.operations * clones, dtype=jnp.int32) // clones
    return Worker(line=job // lines.operations, operation=job % lines.operations, values=jnp.repeat(values, clones, 0))


def _own(lines: ProductionLines, worker: Worker) -> Bool[Array, " G"]:
    """Which goods are pieces of the worker's line. Good l * K + k is the piece of line l at stage k."""
    return jnp.arange(lines.lines * lines.stages) // lines.stages == worker.line


@dataclasses.dataclass(frozen=True)
class StageBids:
    """A worker's valuation: a sealed bid for each stage of its own line, none for other goods."""

    lines: ProductionLines

    def __call__(self, worker: Worker, world: PyTree) -> Additive:
        """The valuation, which does not depend on the ``world``."""
        del world
        return Additive(jnp.where(_own(self.lines, worker), jnp.tile(worker.values, self.lines.lines), -jnp.inf))


@dataclasses.dataclass(frozen=True)
class LineProduction:
    """Production: workers transform the pieces that they bought by the rule of the environment.

    Attributes:
        lines: the production lines.
        params: the environment's parameters, traced or not.
    """

    lines: ProductionLines
    params: PyTree

    def __call__(self, key: Array, agents: Worker, world: PyTree, bundles: Float[Array, "N G"]) -> wide_market.Produced:
        """The pieces and rewards that bundles become."""
        del key
        lines = self.lines
        after, earned = effects(lines, agents, self.params)
        mine = jnp.where(jax.vmap(_own, (None, 0))(lines, agents), bundles, 0)
        mine = mine.reshape(-1, lines.lines, lines.stages).sum(1)
        made = jnp.einsum("nk,nkj->nj", mine, after)
        own = jax.vmap(_own, (None, 0))(lines, agents)
        return wide_market.Produced(
            holdings=jnp.where(own, jnp.tile(made, lines.lines), bundles), reward=(mine * earned).sum(1), world=world
        )


def effects(
    lines: ProductionLines, agents: Worker, params: PyTree
) -> tuple[Float[Array, "N K K"], Float[Array, "N K"]]:
    """The next stage of a piece for each worker and stage, one-hot, and the reward."""
    stages = jnp.arange(lines.stages)
    after, earned = lines.transform(agents.line[:, None], stages, agents.operation[:, None], params)
    return (after[..., None] == stages).astype(real()), earned


class LineSale(struct.PyTreeNode):
    """The sale of every line's piece in a round."""

    stage: Float[Array, "L K"]  # one-hot, stage of the piece for sale
    won: Float[Array, " N"]  # 1 for bidders that bought a piece
    price: Float[Array, " L"]  # paid
    payout: Float[Array, " L"]  # received
    reward: Float[Array, " L"]
    outbid: Bool[Array, " L"]  # whether exploration made an outbid bidder the winner


@dataclasses.dataclass(frozen=True)
class WideSociety:
    """The static description of a wide market of bidders, as `Society` is that of a market for whole states.

    It is the `Player` of a wide market: bids are deterministic.

    Attributes:
        env: the environment, with `ProductionLines`.
        policy: of each job, from the one-hot stage of a piece to a bid; its bids are means.
        clones: bidders per job, which share parameters.
        mechanism: what winners pay and owners receive.

    Raises:
        ValueError: the environment has no production lines.
    """

    env: Adapter
    policy: BidPolicy
    clones: int
    mechanism: Mechanism

    def __post_init__(self) -> None:
        _lines(self.env)

    @property
    def lines(self) -> ProductionLines:
        """The production lines of the environment."""
        return self.env.env

    @property
    def jobs(self) -> int:
        """L * M, pairs of a line and an operation."""
        return self.lines.lines * self.lines.operations

    def market(self, env_params: PyTree, exploration: Any = None) -> wide_market.WideMarket:
        """The market: sealed bids for every piece.

        With exploration (f [], traced or not) a random bidder of the line wins a piece with that probability.
        """
        solver = SealedBids(self.mechanism, exploration=exploration)
        production = LineProduction(self.lines, env_params)
        return wide_market.WideMarket(valuation=StageBids(self.lines), production=production, solver=solver)

    def bids(self, params: PyTree) -> Float[Array, "jobs K"]:
        """The bid of each job at each stage of its line."""
        stages = jnp.eye(self.lines.stages, dtype=real())
        return jax.vmap(lambda job: jax.vmap(self.policy.apply, (None, 0))(job, stages).mean())(params)

    def open(self, values: Float[Array, "jobs K"]) -> wide_market.WideMarketState:
        """A market of raw pieces with these bids; the first owner only receives the first payments."""
        lines = self.lines
        agents = workers(lines, values, self.clones)
        count = agents.line.shape[0]
        first = jnp.arange(lines.lines) * lines.operations * self.clones
        holdings = jnp.zeros((count, lines.lines * lines.stages), real())
        holdings = holdings.at[first, jnp.arange(lines.lines) * lines.stages].set(1)
        return wide_market.init(agents, holdings, jnp.full(count, CREDIT, real()))

    def trade(
        self, key: Array, economy: wide_market.WideMarketState, env_params: PyTree, exploration: Any = None
    ) -> tuple[wide_market.WideMarketState, LineSale]:
        """One round; consumes ``key``."""
        lines, agents = self.lines, economy.agents
        shelf = economy.holdings.sum(0).reshape(lines.lines, lines.stages)
        economy, round_ = wide_market.step(self.market(env_params, exploration), key, economy)
        won = round_.bundles.sum(1)
        by_line = lambda x: x.reshape(lines.lines, -1)  # noqa: E731
        offers = by_line((agents.values * shelf[agents.line]).sum(1))
        winning = (offers * by_line(won)).sum(1)
        return economy, LineSale(
            stage=shelf,
            won=won,
            price=(by_line(round_.prices) * shelf).sum(1),
            payout=(by_line(round_.payout) * shelf).sum(1),
            reward=by_line(round_.flows["reward"]).sum(1),
            outbid=winning < offers.max(1),
        )

    @standard_promotion
    def evaluate(
        self,
        params: PyTree,
        key: Array,
        env_params: PyTree,
        episodes: int = 128,
        max_steps: int = _MOST_STEPS,
        *,
        greedy: Array | None = None,
    ) -> Episodes:
        """Play episodes from raw pieces without exploration and learning, as `jaxmarket.evaluation.evaluate`.

        Bids are always greedy.
        """
        del greedy
        return self.play(self.bids(params), key, env_params, episodes, max_steps)

    def play(
        self,
        values: Float[Array, "jobs K"],
        key: Array,
        env_params: PyTree,
        episodes: int = 1,
        max_steps: int = _MOST_STEPS,
    ) -> Episodes:
        """`evaluate` with bids; a round is a step of the environment."""
        limit = jnp.asarray(env_params.max_steps_in_episode, jnp.int32)

        def unfinished(carry: tuple) -> Array:
            return carry[2] < jnp.minimum(limit, max_steps)

        def body(carry: tuple) -> tuple:
            economies, returns, t = carry
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, t * episodes + jnp.arange(episodes))
            economies, sales = jax.vmap(lambda key, economy: self.trade(key, economy, env_params))(keys, economies)
            return economies, returns + sales.reward.sum(1), t + 1

        begun = _copies(self.open(values), episodes), jnp.zeros(episodes, real()), jnp.zeros((), jnp.int32)
        _, returns, length = jax.lax.while_loop(unfinished, body, begun)
        return Episodes(
            returns=returns,
            lengths=jnp.full(episodes, length),
            finished=jnp.full(episodes, limit <= max_steps),
            terminated=jnp.zeros(episodes, bool),
        )


def _copies(tree: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree)


class WidePolicy(struct.PyTreeNode):
    """A trained wide market as a policy: ``obs -> action``, the operation of every line's highest bidder.

    Attributes:
        params: of the bidding policies, leaves [L * M, ...].
        society: the market that learned them.
    """

    params: PyTree
    society: WideSociety = struct.field(pytree_node=False)

    @standard_promotion
    def __call__(self, obs: PyTree, key: Array | None = None) -> Int32[Array, ""]:
        """The joint action for one raw observation. Ties go to the lowest operation; no key is needed."""
        del key
        lines, society = self.society.lines, self.society
        stages = society.env.encode(obs).reshape(lines.lines, lines.stages)
        values = society.bids(self.params).reshape(lines.lines, lines.operations, lines.stages)
        operation = jnp.einsum("lmk,lk->lm", values, stages).argmax(1)
        base = lines.operations ** jnp.arange(lines.lines - 1, -1, -1, dtype=jnp.int32)
        return jnp.sum(operation * base, dtype=jnp.int32)


class WideMarketTrainState(struct.PyTreeNode):
    """The state of a wide market's training; one seed."""

    learner: PyTree  # leaves [L * M, ...], one for each job
    market: wide_market.WideMarketState  # leaves [B, ...]
    key: Array
    update: Int32[Array, ""]  # updates done
    earned: Float[Array, " B"]  # rewards and subsidies so far
    moved: Float[Array, " B"]  # money moved so far, rewards included


_PARTITION = WideMarketTrainState(
    learner=P(SEEDS),  # type: ignore[arg-type]
    market=P(SEEDS, INSTANCES),  # type: ignore[arg-type]
    key=P(SEEDS),  # type: ignore[arg-type]
    update=P(SEEDS),  # type: ignore[arg-type]
    earned=P(SEEDS, INSTANCES),  # type: ignore[arg-type]
    moved=P(SEEDS, INSTANCES),  # type: ignore[arg-type]
)


class _Sums(struct.PyTreeNode):
    """Sums over the rounds of an update, all instances and lines."""

    reward: Float[Array, ""]
    price: Float[Array, ""]
    subsidy: Float[Array, ""]
    wins: Float[Array, " N"]


@dataclasses.dataclass(frozen=True)
class WideMarketTraining(TrainableDefaults):
    """The static part of a wide market's training, a `jaxmarket.training.trainable.Trainable`.

    ``TrainConfig(env, agent="wide")`` trains it on an environment with `ProductionLines`. A step of a run is a round of
    one instance, in which all L pieces are sold and worked on.

    Attributes:
        society: the market.
        learner: of each job, with the defaults of its numeric settings, which are traced.
        instances: parallel markets.
        horizon: rounds of each market per update.
        updates_per_chunk: updates per `chunk`.
        chunks: chunks of a whole run; not part of the compiled program.
    """

    society: WideSociety
    learner: Learner
    instances: int
    horizon: int
    updates_per_chunk: int
    chunks: int = dataclasses.field(compare=False)

    unused: ClassVar[tuple[str, ...]] = (
        *OF_PRIMITIVES,
        *("share_clones", "ties", "time_limits", "dropout", "reserve", "persistence"),
    )
    defaults: ClassVar[Mapping[str, Any]] = {"learner": "valuation", "hidden": ()}

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The wide market that the settings describe.

        Raises:
            ValueError: the environment has no production lines, or the learner does not estimate values.
        """
        learner = settings.learner
        if not getattr(learner, "estimates_values", False):
            raise ValueError(
                f"learner: bidders of a wide market estimate values, got {type(learner).__name__}; use "
                "learner='valuation', or leave it out"
            )
        society = WideSociety(
            settings.adapter, learner.policy, settings.society.clones, mechanism=settings.society.mechanism
        )
        return cls(
            society=society,
            learner=static_part(learner),
            instances=settings.instances,
            horizon=settings.horizon,
            updates_per_chunk=settings.updates_per_chunk,
            chunks=settings.chunks,
        )

    @property
    def env(self) -> Adapter:
        """The environment."""
        return self.society.env

    @property
    def module_axis(self) -> bool:
        """True: each job has its own parameters."""
        return True

    @property
    def partition(self) -> WideMarketTrainState:
        """How a state with a leading axis of seeds is laid out over a mesh."""
        return _PARTITION

    def player(self, *, greedy: bool) -> WideSociety:
        """The market; its bids are deterministic, whether greedy or not."""
        del greedy
        return self.society

    def policy(self, params: PyTree, *, greedy: bool) -> WidePolicy:
        """The trained market as a policy of the environment's joint view.

        Raises:
            ValueError: an action of the environment works on one line only.
        """
        del greedy
        lines = self.society.lines
        if not (lines.joint or lines.lines == 1):
            raise ValueError(
                f"env: an action of {self.env.name} works on one line, and a wide market acts on all {lines.lines} at "
                "once; train it on the joint view (joint=True) for a policy, or use evaluate"
            )
        return WidePolicy(params, self.society)

    @entry_point
    def init(self, key: Array, env_params: PyTree, hyper: Hyperparameters) -> WideMarketTrainState:
        """The state before the first update: raw pieces; depends neither on ``env_params`` nor on ``hyper``."""
        del env_params, hyper
        society = self.society
        key_learner, key = jax.random.split(key)
        keys = jax.random.split(key_learner, society.jobs)
        learner = jax.vmap(self.learner.init, (0, None))(keys, jnp.zeros(society.lines.stages, real()))
        nothing = jnp.zeros(self.instances, real())
        return WideMarketTrainState(
            learner=learner,
            market=_copies(society.open(society.bids(learner.params)), self.instances),
            key=key,
            update=jnp.zeros((), jnp.int32),
            earned=nothing,
            moved=nothing,
        )

    def settle(self, sales: LineSale, hyper: Hyperparameters) -> Float[Array, "T L"]:
        """The revenue of each purchase, from T + 1 rounds.

        As in `settlement.settle`: reward + γ times the payout for the piece one round later. With contracts a share of
        that payout is replaced by the revenue of its buyer, unless exploration forced the sale.
        """
        now, later = jax.tree.map(lambda x: x[:-1], sales), jax.tree.map(lambda x: x[1:], sales)
        decay = 0.0 if hyper.trace_decay is None else hyper.trace_decay
        last = jnp.arange(now.reward.shape[0]) == now.reward.shape[0] - 1
        decays = jnp.where(later.outbid | last[:, None], 0, jnp.asarray(decay, real()))
        discounts = jnp.full_like(now.reward, hyper.discount)
        return lambda_returns(now.reward, discount=discounts, value=later.payout, trace_decay=decays)

    def _update(
        self, state: WideMarketTrainState, env_params: PyTree, hyper: Hyperparameters
    ) -> tuple[WideMarketTrainState, _Sums]:
        """``horizon`` rounds of every instance, and what all bidders learn from them."""
        society, lines = self.society, self.society.lines
        key_trade, key = jax.random.split(state.key)
        progress = state.update / jnp.asarray(hyper.updates, real())
        exploration = hyper.rules(progress).exploration
        keys = jax.random.split(key_trade, (self.horizon + 1, self.instances))
        held = jnp.arange(self.horizon + 1) < self.horizon

        def trade_round(
            economy: wide_market.WideMarketState, xs: tuple[Array, Array]
        ) -> tuple[wide_market.WideMarketState, LineSale]:
            words, held = xs
            key = jax.random.wrap_key_data(words, impl=jax.random.key_impl(state.key))
            after, sale = society.trade(key, economy, env_params, exploration)
            return tree_select(held, after, economy), sale

        def roll(words: Array, economy: wide_market.WideMarketState) -> tuple[wide_market.WideMarketState, LineSale]:
            # The last round is a bootstrap auction that estimates the payout for the final pieces; no money moves.
            return jax.lax.scan(trade_round, economy, (words, held))

        words = local_slice(jnp.swapaxes(jax.random.key_data(keys), 0, 1), self.learner.axis)
        market, sales = jax.vmap(roll)(words, state.market)
        revenue = jax.vmap(lambda sales: self.settle(sales, hyper))(sales)
        sales = jax.tree.map(lambda rows: rows[:, :-1], sales)

        def rows(values: Array) -> Array:
            """[B, T, n, ...] to [n, T * B, ...]."""
            values = jnp.moveaxis(values, (2, 1, 0), (0, 1, 2))
            return values.reshape(values.shape[0], -1, *values.shape[3:])

        def by_job(of_line: Array) -> Array:
            """[B, T, L] to [L * M, R, T * B], with values for winners only."""
            mine = jnp.repeat(rows(of_line), lines.operations, 0)[:, None]
            return jnp.where(won, mine, 0)

        won = rows(sales.won).reshape(society.jobs, society.clones, -1) > 0
        price = by_job(sales.price)
        experience = Experience(
            obs=jnp.repeat(rows(sales.stage), lines.operations, 0),
            bid=price,  # not used by learners that estimate values
            eligible=jnp.ones(won.shape, bool),
            won=won,
            price=price,
            utility=by_job(revenue) - price,
        )
        learn = jax.vmap(lambda one, lived: self.learner.update(one, lived, hyper, state.update, progress)[0])
        learner = learn(state.learner, experience)
        agents = workers(lines, society.bids(learner.params), society.clones)
        subsidy = sales.payout - sales.price
        state = WideMarketTrainState(
            learner=learner,
            market=market.replace(agents=_copies(agents, market.time.shape[0])),
            key=key,
            update=state.update + 1,
            earned=state.earned + sales.reward.sum((1, 2)) + subsidy.sum((1, 2)),
            moved=state.moved + jnp.abs(sales.price).sum((1, 2)) + jnp.abs(sales.reward).sum((1, 2)),
        )
        sums = _Sums(sales.reward.sum(), sales.price.sum(), subsidy.sum(), sales.won.sum((0, 1)))
        return state, sums

    @standard_promotion
    def chunk(
        self,
        state: WideMarketTrainState,
        env_params: PyTree,
        hyper: Hyperparameters,
        oracle: Oracle | None = None,
    ) -> tuple[WideMarketTrainState, dict[str, Array]]:
        """``updates_per_chunk`` updates, and those of the `jaxmarket.metrics` over them that apply.

        Means are per round. ``return_mean`` is the reward of as many rounds of training as an episode has steps;
        ``oracle`` is not used.
        """
        del oracle

        def body(state: WideMarketTrainState, _: None) -> tuple[WideMarketTrainState, _Sums]:
            return self._update(state, env_params, hyper)

        axis = self.learner.axis
        state, sums = jax.lax.scan(body, state, None, length=self.updates_per_chunk)
        sums, wealth = psum((jax.tree.map(lambda x: x.sum(0), sums), state.market.wealth.sum(0)), axis)
        rounds = self.instances * self.horizon * self.updates_per_chunk
        return state, {
            "return_mean": sums.reward / rounds * jnp.asarray(env_params.max_steps_in_episode, real()),
            "duration": jnp.ones((), real()),
            "welfare": sums.reward / rounds,
            "auction_revenue": sums.price / rounds,
            "subsidy": sums.subsidy / rounds,
            "wins": sums.wins / (rounds * self.society.lines.lines),
            "gini": gini(wealth),
            "conservation_residual": pmax(self.residual(state).max(), axis),
            "diverged": diverged(networks(state.learner), sums.reward),
        }

    def residual(self, state: WideMarketTrainState) -> Float[Array, "... B"]:
        """``|change of money - rewards - subsidies|`` over the money moved since the beginning, per instance."""
        change = (state.market.wealth - CREDIT).sum(-1)
        return jnp.abs(change - state.earned) / jnp.maximum(1, state.moved)
