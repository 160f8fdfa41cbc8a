"""The market as a multi-agent environment in JaxMARL's interface: agents are bidders, actions are bids.

It needs JaxMARL: ``pip install 'jaxmarket[marl]'``. `jaxmarket.interop.embedding.given_bids` provides the same market
with arrays instead of dicts, without JaxMARL.
"""

import functools
import math
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.interop.embedding import given_bids
from jaxmarket.settlement import flows
from jaxmarket.society import Society, advance, draw, reset
from jaxmarket.types import Array, PyTree, Rules, State, real
from jaxmarket.validation import short_repr

_streams = sys.stdout, sys.stderr  # importing JaxMARL replaces them, and notebooks then show no printed lines
try:
    from jaxmarl.environments.multi_agent_env import MultiAgentEnv
    from jaxmarl.environments.spaces import Box, Discrete, Space
except ModuleNotFoundError as error:
    raise ImportError("jaxmarket.interop.multi_agent needs JaxMARL: pip install 'jaxmarket[marl]'") from error
finally:
    sys.stdout, sys.stderr = _streams

__all__ = ["MarketEnv"]


class MarketEnv(MultiAgentEnv):
    """A society whose bidders are JaxMARL's agents ``bidder_0`` … ``bidder_{A-1}``.

    One step is one `jaxmarket.step`: the bids are the actions, the auction clears, the buyer pays, the owner is
    paid, the winner's primitive transforms the environment, and its reward is credited.

    **Rewards are net cash flows**: payout received + reward earned - price paid in this step. A bidder receives the
    payout for its purchase when the state is sold again, in the next step. The sum of an episode's rewards is
    therefore the bidder's change of wealth, and their discounted sum equals the discounted sum of the utilities from
    `jaxmarket.settle` with the same discount and ``time_limits="terminal"`` (for a primitive that takes k > 1
    environment steps, `settle` discounts by γᵏ). The last owner of a truncated episode receives no payout. JaxMARL's
    ``dones`` do not distinguish truncation from termination; ``infos`` do.

    **Observations** are those of the bidder's module, flattened, and a flag whether the bidder owns the state for sale,
    because the owner receives the payout. Accounts are not observed: without budgets they have no effect on the
    auction.

    **Episodes** end for all bidders at once; JaxMARL's ``step`` resets, and ``step_env`` does not. A reset sets all
    accounts to 0. ``infos`` have [A] entries each, as JaxMARL's baselines expect: ``purchase``, ``sale`` and
    ``reward`` (the cash flows), ``wealth`` after the step, ``terminated`` and ``truncated``.

    JaxMARL compiles its methods for each environment object with the parameters as constants, so create the object
    once. To sweep over parameters or differentiate, use `jaxmarket.interop.embedding.given_bids`.

    >>> import jaxmarket
    >>> config = jaxmarket.TrainConfig("Chain-v0", learner="ppo", bid_low=0.0, bid_high=1.0, clones=1)
    >>> market = MarketEnv(config.settings.society)
    >>> obs, state = market.reset(jax.random.key(0))
    >>> actions = {"bidder_0": jnp.array([0.25]), "bidder_1": jnp.array([0.75])}
    >>> obs, state, rewards, dones, infos = market.step(jax.random.key(1), state, actions)
    >>> {name: float(reward) for name, reward in rewards.items()}, obs["bidder_1"].tolist()
    ({'bidder_0': 0.0, 'bidder_1': -0.25}, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0])

    Args:
        society: environment, mechanism and number of bidders; only the bid limits of its policy are used.
        env_params: the environment's parameters; by default its ``default_params``.
        rules: exploration, reserve and dropout; none by default.
        low, high: the lowest and highest bid, by default those of the society's bid head. Other bids are clipped; a
            bid that is NaN is not eligible.
        grid: the possible bids in ascending order, instead of limits. Actions are then indices of the grid
            (``Discrete``); otherwise they are bids (``Box`` of shape (1,)).

    Raises:
        ValueError: ``society`` is not a `Society`, the limits are not finite or not ascending, or the grid is not
            ascending.
    """

    def __init__(
        self,
        society: Society,
        env_params: PyTree = None,
        *,
        rules: Rules | None = None,
        low: float | None = None,
        high: float | None = None,
        grid: Sequence[float] | None = None,
    ) -> None:
        if not isinstance(society, Society):
            raise ValueError(
                f"society: expected a Society, got {short_repr(society)}; use TrainConfig(...).settings.society"
            )
        super().__init__(num_agents=society.bidders)
        self.society = given_bids(society)
        self.env_params = society.env.parameters(env_params)
        self.rules = rules or Rules()
        self.grid = None if grid is None else _ascending(grid)
        self.low, self.high = _limits(society, low, high) if self.grid is None else (self.grid[0], self.grid[-1])
        self.agents = [f"bidder_{i}" for i in range(society.bidders)]
        observation = Box(-jnp.inf, jnp.inf, (math.prod(society.observation.shape) + 1,), real())
        action = self._action_space()
        self.observation_spaces: dict[str, Space] = dict.fromkeys(self.agents, observation)
        self.action_spaces: dict[str, Space] = dict.fromkeys(self.agents, action)

    def _action_space(self) -> Space:
        env = self.society.env
        if self.society.learned is None:
            return Box(self.low, self.high, (1,), real()) if self.grid is None else Discrete(len(self.grid))
        low, high = ((0.0,), (env.num_actions - 1.0,)) if env.box is None else (env.box.low, env.box.high)
        lowest, highest = jnp.array([self.low, *low], real()), jnp.array([self.high, *high], real())
        return Box(lowest, highest, lowest.shape, real())  # type: ignore[arg-type]  JaxMARL's own accept arrays

    @functools.partial(jax.jit, static_argnums=0)
    def reset(self, key: Array) -> tuple[dict[str, Array], State]:
        """Start an episode: all balances are 0, and the auctioneer owns the first state. Returns ``(obs, state)``."""
        state, _ = reset(self.society, key, self.env_params, self.rules)
        return self.get_obs(state), state

    def step_env(  # pyright: ignore[reportIncompatibleMethodOverride]  the state is ours
        self, key: Array, state: State, actions: dict[str, Array]
    ) -> tuple[dict[str, Array], State, dict[str, Array], dict[str, Array], dict[str, Array]]:
        """One `jaxmarket.step` without the reset: ``(obs, state, rewards, dones, infos)``."""
        draws = draw(self.society, key)
        params: PyTree = self.bids(actions)
        if self.society.learned is not None:
            chosen = jnp.stack([actions[agent][1:] for agent in self.agents])
            params = {"bids": params, "actions": chosen[:, 0] if self.society.env.box is None else chosen}
        state, row = advance(self.society, draws, params, state, self.env_params, self.rules)
        cash = jax.tree.map(lambda flow: flow[:-1], flows(row))  # without the auctioneer
        for_all = functools.partial(jnp.broadcast_to, shape=(self.num_agents,))
        infos = {
            **{name: cash[name] for name in cash.names},
            "wealth": state.accounts.wealth,
            "terminated": for_all(row.terminated),
            "truncated": for_all(row.truncated),
        }
        rewards = self._named(cash.net)
        dones = self._named(for_all(row.done)) | {"__all__": row.done}
        return self.get_obs(state), state, rewards, dones, infos

    def bids(self, actions: dict[str, Array]) -> Array:
        """Convert actions to bids, f [A]: clipped to the limits, or looked up in the grid."""
        stacked = jnp.stack([jnp.reshape(actions[agent], -1)[0] for agent in self.agents])
        if self.grid is not None:
            return jnp.asarray(self.grid, real())[stacked]
        return jnp.clip(stacked.astype(real()), self.low, self.high)

    def get_obs(self, state: State) -> dict[str, Array]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Observations by bidder, f [n + 1] each: the society's, flattened, and whether the bidder is the owner."""
        owns = (jnp.arange(self.num_agents) == state.owner).astype(state.obs.dtype)
        seen, axis = self.society.observed(state.obs)
        return self._named(jax.vmap(lambda seen, own: jnp.append(seen.reshape(-1), own), (axis, 0))(seen, owns))

    @functools.partial(jax.jit, static_argnums=0)
    def get_avail_actions(self, state: State) -> dict[str, Array]:
        """Available actions by bidder. With a grid: bool [n], only the lowest bid if the bidder is not eligible.

        Without a grid: bool [1], whether the bidder is eligible.
        """
        eligible = self.society.eligible(state.active, state.env_state, self.env_params)
        if self.grid is None:
            return self._named(eligible[:, None])
        return self._named(eligible[:, None] | (jnp.arange(len(self.grid)) == 0))

    @property
    def name(self) -> str:
        """The name of the market and its environment."""
        return f"Market({self.society.env.name})"

    @property
    def agent_classes(self) -> dict[str, list[str]]:
        """The bidders of each primitive (its clones), which may share parameters."""
        clones = self.society.clones
        return {f"primitive_{p}": self.agents[p * clones : (p + 1) * clones] for p in range(self.society.primitives)}

    def _named(self, values: Array) -> dict[str, Array]:
        """The entries of an array [A, ...] by agent."""
        return dict(zip(self.agents, values, strict=True))


def _limits(society: Society, low: float | None, high: float | None) -> tuple[float, float]:
    own = getattr(getattr(society.policy, "head", None), "limits", (-math.inf, math.inf))
    lowest, highest = (float(limit if given is None else given) for given, limit in zip((low, high), own, strict=True))
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest < highest):
        raise ValueError(
            f"low, high: expected finite limits with low < high, got {lowest} and {highest}; set both, or a grid"
        )
    return lowest, highest


def _ascending(grid: Sequence[float]) -> tuple[float, ...]:
    bids = np.asarray(grid, float)
    if bids.ndim != 1 or len(bids) < 2 or not np.isfinite(bids).all() or (np.diff(bids) <= 0).any():
        raise ValueError(f"grid: expected two or more finite bids in ascending order, got {short_repr(grid)}")
    return tuple(bids.tolist())
