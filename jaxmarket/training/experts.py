"""Single agents that are made of experts: what a gate or options do where a society holds an auction.

Both are a `Monolith` with another policy, so that PPO, returns and rollouts are those of all other agents:

- a *mixture of experts* (Jacobs et al. 1991): the policy is Σ g_k(s) π_k(a | s), with a gate g and K experts π_k;
- an *option-critic* (Bacon et al. 2017): a policy over options, and for each option a policy over actions and a
  probability of termination in every state.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmarket.environments.adapter import Adapter, adapt
from jaxmarket.policies import BidPolicy, ValueNetwork
from jaxmarket.training.actions import ChoiceHead
from jaxmarket.training.monolith import ChoicePolicy, Monolith
from jaxmarket.training.settings import Settings
from jaxmarket.types import Array, PyTree, real
from jaxmarket.validation import check_int

__all__ = ["MixtureOfExperts", "MixturePolicy", "OptionCritic", "OptionPolicy", "RunningOption"]


def _log(probability: Array) -> Array:
    """The logarithm, with a gradient where a probability has become 0."""
    return jnp.log(jnp.maximum(probability, jnp.finfo(probability.dtype).tiny))


@dataclasses.dataclass(frozen=True)
class MixturePolicy(BidPolicy):
    """The policy Σ g_k π_k over choices, whose gate g and experts π_k are separate networks with the same layers.

    Attributes:
        torso: below the output layer of the gate and of each expert.
        head: of each expert, a `ChoiceHead`.
        experts: K.
    """

    experts: int = 2

    @property
    def _gate(self) -> BidPolicy:
        return BidPolicy(self.torso, ChoiceHead(self.experts))

    @property
    def _expert(self) -> BidPolicy:
        return BidPolicy(self.torso, self.head)

    def init(self, key: Array, obs: Array) -> PyTree:
        """Parameters of the ``gate`` and of the ``experts``, these with a leading axis K."""
        key_gate, key_experts = jax.random.split(key)
        keys = jax.random.split(key_experts, self.experts)
        return {"gate": self._gate.init(key_gate, obs), "experts": jax.vmap(self._expert.init, (0, None))(keys, obs)}

    def gates(self, params: PyTree, obs: Array) -> Float[Array, " K"]:
        """The probability of each expert for one observation."""
        return jax.nn.softmax(self._gate.output(params["gate"], obs))

    def choices(self, params: PyTree, obs: Array) -> Float[Array, "K P"]:
        """The probability with which each expert makes each choice."""
        return jax.nn.softmax(jax.vmap(self._expert.output, (0, None))(params["experts"], obs))

    def output(self, params: PyTree, obs: Array) -> Array:
        """Logarithms of the mixture's probabilities: f [P]."""
        return _log(self.gates(params, obs) @ self.choices(params, obs))


@dataclasses.dataclass(frozen=True)
class OptionPolicy(MixturePolicy):
    """The policy of an option-critic over pairs of an option and a choice, given the option that runs.

    The running option, one-hot, is the end of an observation (`RunningOption`); all networks read the rest. Option k
    terminates with probability β_k(s). Then the gate draws the next option, as it does if none is running.
    """

    @property
    def _endings(self) -> BidPolicy:
        return BidPolicy(self.torso, ChoiceHead(self.experts))

    def _split(self, obs: Array) -> tuple[Array, Array]:
        return obs[: -self.experts], obs[-self.experts :]

    def init(self, key: Array, obs: Array) -> PyTree:
        """Parameters of the ``gate``, the ``experts`` and the ``endings``, the network of terminations."""
        obs, _ = self._split(obs)
        key_endings, key = jax.random.split(key)
        return super().init(key, obs) | {"endings": self._endings.init(key_endings, obs)}

    def gates(self, params: PyTree, obs: Array) -> Float[Array, " K"]:
        """The probability of each option to be the next one."""
        obs, running = self._split(obs)
        kept = running * jax.nn.sigmoid(-self._endings.output(params["endings"], obs))
        return kept + (1 - kept.sum()) * super().gates(params, obs)

    def output(self, params: PyTree, obs: Array) -> Array:
        """Logarithms of the probabilities of all pairs: f [K · P], with the choice as the last digit."""
        choices = self.choices(params, self._split(obs)[0])
        return _log(self.gates(params, obs)[:, None] * choices).reshape(-1)


@dataclasses.dataclass(frozen=True)
class RunningOption:
    """An environment in which an action is a pair of an option and an action, and observations show the last option.

    Action ``option · P + action`` takes one of the P actions. Observations are those of the environment, followed by
    the option, one-hot; all 0 in the first state of an episode.

    Attributes:
        adapter: the environment, with observations that are vectors.
        options: K.
    """

    adapter: Adapter
    options: int

    @property
    def name(self) -> str:
        """The name of the environment and the number of options."""
        return f"{self.adapter.name} with {self.options} options"

    @property
    def gamma(self) -> float | None:
        """The discount of the environment."""
        return self.adapter.gamma

    @property
    def num_actions(self) -> int:
        """K · P."""
        return self.options * self.adapter.num_actions

    @property
    def default_params(self) -> PyTree:
        """The parameters of the environment."""
        return self.adapter.default_params

    def reset(self, key: Array, params: PyTree) -> tuple[Array, PyTree]:
        """Reset the environment; no option is running."""
        obs, state = self.adapter.reset(key, params)
        return jnp.concatenate([obs, jnp.zeros(self.options, real())]), state

    def step(
        self, key: Array, state: PyTree, action: Array, params: PyTree
    ) -> tuple[Array, PyTree, Array, Array, Array, dict[str, Array]]:
        """Take the action of the pair."""
        option, action = jnp.divmod(action, self.adapter.num_actions)
        after = self.adapter.step(key, state, action, params)
        obs = jnp.concatenate([after.obs, jax.nn.one_hot(option, self.options, dtype=real())])
        info = {"duration": after.duration, "undiscounted": after.undiscounted}
        return obs, after.env_state, after.reward, after.terminated, after.truncated, info


@dataclasses.dataclass(frozen=True)
class _OfExperts:
    """Base of the kinds of agents: the settings of a monolithic agent, with ``hidden`` as the layers of each expert.

    Attributes:
        experts: K.
        value_hidden: layers of the value network; by default one of K times the width of each of an expert's layers.
    """

    experts: int = 4
    value_hidden: tuple[int, ...] | None = None

    unused: ClassVar[tuple[str, ...]] = Monolith.unused
    defaults: ClassVar[Mapping[str, Any]] = Monolith.defaults
    learners: ClassVar[Mapping[str, Any]] = Monolith.learners

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", check_int("experts", self.experts))

    def _monolith(self, settings: Settings, kind: type[MixturePolicy]) -> Monolith:
        """The agent with that kind of policy, in the environment of the settings."""
        if getattr(settings.learner, "estimates_values", False):
            raise ValueError("learner: experts are mixed by probabilities, got valuation; use learner='ppo'")
        agent = Monolith.of(settings)
        torso: Any = agent.learner.policy.torso
        policy = kind(torso, agent.learner.policy.head, self.experts)
        widths = self.value_hidden or tuple(self.experts * width for width in torso.hidden)
        value = ValueNetwork(dataclasses.replace(torso, hidden=widths))
        return dataclasses.replace(agent, learner=agent.learner.bind(policy, value))


@dataclasses.dataclass(frozen=True)
class MixtureOfExperts(_OfExperts):
    """A gate and K experts, trained by PPO on the return: ``TrainConfig(env, agent=MixtureOfExperts(4))``."""

    def of(self, settings: Settings) -> Monolith:
        """The agent that the settings describe.

        Raises:
            ValueError: as `Monolith.of`, or the learner is not `PPO`.
        """
        return self._monolith(settings, MixturePolicy)


@dataclasses.dataclass(frozen=True)
class OptionCritic(_OfExperts):
    """An option-critic with K options, trained by PPO on the return: ``TrainConfig(env, agent=OptionCritic(4))``.

    The options' policies, their terminations and the policy over options are one policy over pairs of an option and an
    action in the environment `RunningOption` (Zhang and Whiteson 2019). Its policy gradient is that of all three parts.
    Bacon et al. (2017) follow the same gradient with other estimates: theirs of Q over options is learned off-policy,
    ours is V of the state and the running option. There is no deliberation cost.
    """

    def of(self, settings: Settings) -> Monolith:
        """The agent that the settings describe.

        Raises:
            ValueError: as `Monolith.of`, the learner is not `PPO`, or observations are images.
        """
        shape = settings.adapter.observation.shape
        if len(shape) != 1:
            raise ValueError(f"env: an option-critic reads vectors, {settings.adapter.name} has {shape}; use another")
        env = adapt(RunningOption(settings.adapter, self.experts))
        fields: dict[str, Any] = {**vars(self._monolith(settings, OptionPolicy)), "env": env}
        return _OptionAgent(**fields)


class _OptionAgent(Monolith):
    """A monolithic agent whose choices depend on the option that runs."""

    def policy(self, params: PyTree, *, greedy: bool) -> ChoicePolicy:
        """Raises a ValueError: the running option is not part of the environment's observations."""
        raise ValueError("agent: the actions of an option-critic depend on its running option; use `player`")
