"""The resolved settings of a training run."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from jaxmarket.environments.adapter import Adapter
from jaxmarket.learners import LEARNERS, ActionPPO, Hyperparameters, Learner
from jaxmarket.metrics import Oracle
from jaxmarket.settlement import TimeLimits
from jaxmarket.society import Society
from jaxmarket.training.trainable import Trainable
from jaxmarket.types import cached_property, real

__all__ = ["OF_PRIMITIVES", "AgentKind", "Settings"]

OF_PRIMITIVES = (
    *("primitives", "modules", "hold", "share_torso"),
    *("action_learning_rate", "action_entropy", "action_clip", "action_epochs"),
)
"""The settings of primitives, which apply to societies only."""


class AgentKind(Protocol):
    """What `TrainConfig` takes as ``agent``: a class of trainables, or an object that makes them.

    It may have further attributes: ``unused``, names of settings of `TrainConfig` that do not apply to it;
    ``defaults``, values for settings that the user did not set, ``learner`` and ``hidden`` among them; ``learners``,
    learners by alias, where other settings are best for this kind of agent than for a society; ``continuous``, whether
    it serves environments with continuous actions; ``numbers``, traced numbers by name, which training finds in
    ``hyper.own``; and ``parts``, for fields that hold objects, whether an object or a class is one that a run folder
    may name there.
    """

    def of(self, settings: "Settings") -> Trainable:
        """The trainable that the settings describe.

        Raises:
            ValueError: a setting does not fit this kind of agent.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `jaxmarket.TrainConfig` resolves to: every setting has a value, and every object is complete.

    Attributes:
        adapter: the environment.
        agent: makes the trainable.
        society: the environment with bidders, bid networks and a mechanism.
        learner: bound to its networks; without meaning where the setting does not apply to the agent.
        action_learner: bound to its network; None unless the primitives of a society learn.
        seeds: independent runs.
        steps: auctions per seed.
        gamma: discount.
        instances, horizon: parallel instances per seed, and auctions of each per update.
        updates_per_chunk: updates per chunk, that is, per compiled call and per row of metrics.
        time_limits: how settlement treats truncated episodes (`jaxmarket.settlement.proceeds`).
        trace_decay, exploration, exploration_final, persistence, dropout, reserve: the market's rules; 0 turns a rule
            off.
        values: the settings by name as `TrainConfig` takes them, with defaults filled in, without those that do not
            apply.
    """

    adapter: Adapter
    agent: AgentKind
    society: Society
    learner: Learner
    seeds: int
    steps: int
    gamma: float
    instances: int
    horizon: int
    updates_per_chunk: int
    time_limits: TimeLimits
    trace_decay: float
    exploration: float
    exploration_final: float
    persistence: float
    dropout: float
    reserve: float
    values: Mapping[str, Any] = dataclasses.field(compare=False, repr=False)
    action_learner: ActionPPO | None = None

    @property
    def minibatch(self) -> int | None:
        """Auctions per gradient step; None if the agent has no learner."""
        return None if "learner" in getattr(self.agent, "unused", ()) else self.learner.minibatch

    @property
    def updates(self) -> int:
        """Updates (one rollout of all instances each) that make up ``steps``, rounded up."""
        return -(-self.steps // (self.instances * self.horizon))

    @property
    def auctions_per_chunk(self) -> int:
        """Auctions of one seed between two rows of metrics."""
        return self.instances * self.horizon * self.updates_per_chunk

    @property
    def chunks(self) -> int:
        """Chunks that make up the run; the last one is whole, so there may be more updates than ``updates``."""
        return -(-self.updates // self.updates_per_chunk)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The traced settings, as numbers; replace any of them with an array to sweep over it."""
        explores = self.exploration > 0 or self.exploration_final > 0
        hyper = Hyperparameters(
            discount=self.gamma,
            updates=self.chunks * self.updates_per_chunk,
            trace_decay=self.trace_decay or None,
            exploration=self.exploration if explores else None,
            exploration_final=self.exploration_final if explores else None,
            persistence=(self.persistence or None) if explores or self.action_learner is not None else None,
            reserve=self.reserve or None,
            dropout=self.dropout or None,
            own=dict(getattr(self.agent, "numbers", {})),
        ).with_learner(self.learner)
        return hyper if self.action_learner is None else hyper.with_learner(self.action_learner)

    @cached_property
    def trainable(self) -> Trainable:
        """The static part of the run."""
        return self.agent.of(self)

    @property
    def labels(self) -> dict[str, Any]:
        """What identifies the kind of agent in the summary of a run; None where a setting does not apply."""
        names = {
            "agent": self.values["agent"],
            "auction": self.values.get("auction"),
            "learner": self.values.get("learner"),
        }
        names = {name: _name(value) for name, value in names.items()}
        return names | {"clones": self.values.get("clones")}

    @property
    def oracle(self) -> Oracle | None:
        """Q* and the optimal return at these settings' discount, where the trainable's metrics use them; else None."""
        q = None if self.trainable.states is None else self.adapter.optimal_q(self.gamma)
        if q is None:
            return None
        best = self.adapter.optimal_return(self.gamma)
        return Oracle(*(jax.device_put(np.asarray(value, real())) for value in (q, best)))


def _name(value: Any) -> str | None:
    """An alias as it is; of an object its name, the alias of its class, or the name of its class."""
    if value is None or isinstance(value, str):
        return value
    for alias, known in LEARNERS.items():
        if type(value) is known:
            return alias
    return getattr(value, "name", None) or getattr(value, "__name__", type(value).__name__)
