"""Selection without a market: teams of agents that are chosen by their success, a baseline of deep markets.

A team is an ordered list of agents. The first one that would bid acts; if there is none, the action is random. Agents
have no money, and members of a team are not paid.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmarket.deep_market.representations import Representation
from jaxmarket.environments.adapter import Adapter
from jaxmarket.types import Array, PyTree

__all__ = ["TeamSelection", "success_rate"]


def success_rate(
    act: Callable[[Array, Array], Array], key: Array, env: Adapter, params: PyTree, instances: int
) -> tuple[Array, Array]:
    """Share of episodes that terminate before they are truncated f [], and environment steps of all of them i32 [].

    Args:
        act: ``(key, obs) -> i32 [instances]``.
        key: a PRNG key; consumed.
        env: the environment.
        params: its parameters, such as the distribution of its instances.
        instances: number of episodes; static.
    """
    key_reset, key = jax.random.split(key)
    obs, states = jax.vmap(env.reset, (0, None))(jax.random.split(key_reset, instances), params)

    def unfinished(carry: PyTree) -> Array:
        return ~carry[-2].all()

    def move(carry: PyTree) -> PyTree:
        key, obs, states, solved, over, steps = carry
        key_act, key_step, key = jax.random.split(key, 3)
        keys = jax.random.split(key_step, instances)
        after = jax.vmap(env.step, (0, 0, 0, None))(keys, states, act(key_act, obs), params)
        solved, steps = solved | (after.terminated & ~over), steps + (~over).sum(dtype=jnp.int32)
        return key, after.obs, after.env_state, solved, over | after.terminated | after.truncated, steps

    none = jnp.zeros(instances, bool)
    start = key, obs, states, none, none, jnp.zeros((), jnp.int32)
    _, _, _, solved, _, steps = jax.lax.while_loop(unfinished, move, start)
    return solved.mean(), steps


@dataclasses.dataclass(frozen=True)
class TeamSelection:
    """Evolution of teams: the teams that succeed most often survive and have children with one changed member.

    Attributes:
        env: the environment, in whose default parameters success is measured.
        representation: of the agents.
        members: agents of a team.
        teams: number of teams.
        trials: new episodes per generation, the same for all teams.
        survivors: teams that survive a generation; the others are replaced by children of these.
    """

    env: Adapter
    representation: Representation
    members: int = 8
    teams: int = 32
    trials: int = 16
    survivors: int = 8

    def first(self, team: PyTree, obs: Array) -> tuple[Array, Array]:
        """The action of the first agent of a team that bids i32 [], and whether there is one, bool []."""
        bids = jax.vmap(self.representation.bid, (0, None, None))(team, obs, jnp.ones(()))
        matches = jnp.isfinite(bids)
        agent = jax.tree.map(lambda leaf: leaf[jnp.argmax(matches)], team)
        return self.representation.act(agent, obs), matches.any()

    def act(self, team: PyTree, key: Array, obs: Array) -> Array:
        """The actions of a team i32 [B], for observations [B, ...]."""
        action, matched = jax.vmap(self.first, (None, 0))(team, obs)
        return jnp.where(matched, action, jax.random.randint(key, action.shape, 0, self.env.num_actions))

    def generation(self, teams: PyTree, key: Array) -> tuple[PyTree, tuple[PyTree, Array]]:
        """The next generation; and the best team of this one, with the environment steps of all teams i32 []."""
        key_trial, key_parent, key_member, key_mutate = jax.random.split(key, 4)

        def trial(team: PyTree) -> tuple[Array, Array]:
            act = functools.partial(self.act, team)
            return success_rate(act, key_trial, self.env, self.env.default_params, self.trials)

        fitness, steps = jax.vmap(trial)(teams)
        best = jnp.argsort(-fitness)[: self.survivors]
        children, rows = self.teams - self.survivors, jnp.arange(self.teams - self.survivors)
        parents = best[jax.random.randint(key_parent, (children,), 0, self.survivors)]
        member = jax.random.randint(key_member, (children,), 0, self.members)
        members = jax.tree.map(lambda leaf: leaf[parents, member], teams)
        mutate = jax.vmap(self.representation.mutate)
        changed = mutate(jax.random.split(key_mutate, children), members, members)
        following = jax.tree.map(
            lambda leaf, new: jnp.concatenate([leaf[best], leaf[parents].at[rows, member].set(new)]), teams, changed
        )
        return following, (jax.tree.map(lambda leaf: leaf[best[0]], teams), steps.sum())

    def evolve(self, key_init: Array, key_run: Array, obs: Array, budget: int, shortest: int) -> tuple[PyTree, Array]:
        """The best team of the last generation within a budget, and the environment steps used i32 [].

        Args:
            key_init: draws the first teams.
            key_run: of the generations.
            obs: an observation, from which random agents are drawn.
            budget: environment steps; static.
            shortest: a lower bound on the mean length of episodes, which bounds the number of generations; static.
        """
        generations = max(1, budget // (self.teams * self.trials * shortest))
        init = jax.vmap(jax.vmap(self.representation.init, (0, None)), (0, None))
        teams = init(jax.random.split(key_init, (self.teams, self.members)), obs)
        _, (best, steps) = jax.lax.scan(self.generation, teams, jax.random.split(key_run, generations))
        spent = jnp.cumsum(steps)
        last = jnp.maximum(jnp.sum(spent <= budget) - 1, 0)
        return jax.tree.map(lambda leaf: leaf[last], best), spent[last]
