"""The protocol of what `jaxmarket.fit` and `jaxmarket.train` can train."""

import dataclasses
from typing import Any, Protocol, Self

from jaxmarket.environments.adapter import Adapter
from jaxmarket.evaluation import Episodes
from jaxmarket.learners import Hyperparameters
from jaxmarket.learners.protocol import shard
from jaxmarket.metrics import Oracle
from jaxmarket.types import Array, PyTree

__all__ = ["Player", "Trainable", "TrainableDefaults"]


class Player(Protocol):
    """What acts in an evaluation: a frozen dataclass, compared by value."""

    @property
    def env(self) -> Adapter:
        """The environment."""
        ...

    def evaluate(
        self, params: PyTree, key: Array, env_params: PyTree, episodes: int, *, greedy: Array | None = None
    ) -> Episodes:
        """Play new episodes in parallel.

        Args:
            params: of one seed, without an axis of seeds.
            key: a typed PRNG key.
            env_params: the environment's parameters.
            episodes: number of episodes, static.
            greedy: bool [], traced, in place of the ``greedy`` that made the player, so that one program serves both;
                it has no meaning where all choices are deterministic.

        Returns:
            The results, leaves [episodes].
        """
        ...


class Trainable(Protocol):
    """The static part of a training run: a frozen dataclass, compared by value; equal ones share compiled programs.

    `init` and `chunk` are pure functions of one seed, which callers map over seeds with `jax.vmap`. Their state is a
    pytree with two fields that callers use: ``update`` (i32 [], updates done) and ``learner``, whose field ``params``
    holds the policies' parameters. Where ``module_axis`` is True, the leaves of ``learner`` are [M, ...].
    """

    @property
    def env(self) -> Adapter:
        """The environment."""
        ...

    @property
    def instances(self) -> int:
        """Parallel instances per seed."""
        ...

    @property
    def updates_per_chunk(self) -> int:
        """Updates per `chunk`."""
        ...

    @property
    def chunks(self) -> int:
        """Chunks of a whole run; not part of the compiled program."""
        ...

    @property
    def states(self) -> int | None:
        """S, if the metrics compare bids with Q* over one-hot states; else None."""
        ...

    @property
    def module_axis(self) -> bool:
        """Whether the learner's state has a leading axis of modules."""
        ...

    @property
    def partition(self) -> PyTree:
        """How a state with a leading axis of seeds is laid out over the devices of a run: a tree of `PartitionSpec`."""
        ...

    @property
    def initializer(self) -> Self:
        """A trainable with the same `init`, equal for all that differ only in what `init` does not depend on."""
        ...

    def shard(self, shards: int) -> Self:
        """This trainable on one of ``shards`` devices that share the instances of a seed.

        Raises:
            ValueError: the instances of a seed cannot be spread over devices.
        """
        ...

    def init(self, key: Array, env_params: PyTree, hyper: Hyperparameters) -> Any:
        """The state before the first update."""
        ...

    def chunk(
        self, state: Any, env_params: PyTree, hyper: Hyperparameters, oracle: Oracle | None = None
    ) -> tuple[Any, dict[str, Array]]:
        """Train for ``updates_per_chunk`` updates.

        Args:
            state: from `init` or the previous chunk.
            env_params: the environment's parameters.
            hyper: traced settings.
            oracle: Q* and the optimal return, for metrics that need them.

        Returns:
            The new state, and metrics over all updates of the chunk by name, f [] each (or [A], [S]); ``return_mean``
            and ``duration`` must be among them.
        """
        ...

    def player(self, *, greedy: bool) -> Player:
        """What acts in an evaluation; equal for all trainables that act alike."""
        ...

    def policy(self, params: PyTree, *, greedy: bool) -> Any:
        """The trained policy ``(obs, key) -> action``, from the parameters of one seed.

        Raises:
            ValueError: what was learned does not determine single actions of the environment.
        """
        ...

    def bids_and_visits(self, state: Any) -> tuple[Array, Array] | None:
        """Of a state with a leading axis of seeds: greedy bids f [seeds, S, P], and visited states bool [seeds, S].

        None where ``states`` is None.
        """
        ...


class TrainableDefaults:
    """A base class with defaults for a `Trainable`: one module in a field ``learner``, no comparison of bids with Q*.

    They are not members of the protocol itself: a field of a dataclass would take a property of its base class, such as
    ``states``, as its default value.
    """

    @property
    def states(self) -> None:
        """None: there is no Q* to compare bids with."""

    def bids_and_visits(self, state: Any) -> None:
        """None, as `states`."""

    @property
    def module_axis(self) -> bool:
        """False: there is one set of parameters."""
        return False

    @property
    def initializer(self) -> Self:
        """This training: `init` may depend on all of it."""
        return self

    def shard(self, shards: int) -> Self:
        """This training on one of ``shards`` devices that share the instances."""
        return dataclasses.replace(self, learner=shard(self.learner, shards))  # type: ignore[attr-defined]
