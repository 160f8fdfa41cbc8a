"""The typed settings of a training run: what the command line is built from."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from jax.core import Tracer

from jaxmarket import auctions
from jaxmarket.auctions import Mechanism
from jaxmarket.environments import adapt, make
from jaxmarket.environments.adapter import Adapter
from jaxmarket.learners import LEARNERS, PPO, Hyperparameters, Learner, Reinforce, Valuation
from jaxmarket.policies import BetaHead, BidPolicy, KumaraswamyHead, Torso, ValueHead, ValueNetwork, cnn, linear, mlp
from jaxmarket.settlement import TIME_LIMITS, TimeLimits
from jaxmarket.society import Society
from jaxmarket.switches import check_backend
from jaxmarket.validation import check_bool, check_choice, check_float, check_int, check_widths, short_repr

if TYPE_CHECKING:
    Auction = str | Mechanism
else:
    Auction = str  # the command line reads this annotation, and offers names only

__all__ = ["PRESETS", "Defaults", "TrainConfig", "check_config", "plain_setting"]


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a setting of `TrainConfig` left at None becomes, for one learner."""

    steps: int
    instances: int
    horizon: int
    minibatch: int
    epochs: int
    learning_rate: float
    bids: str
    table_learning_rate: float | None = None  # where the bid network is a table, if it differs
    trace_decay: float | None = None
    exploration: float | None = None
    exploration_final: float | None = None


_PPO = Defaults(
    # Chang et al. (2020): 4,096 steps per update, 256 transitions per minibatch (128 auctions × 2 clones).
    steps=3_072_000,
    instances=32,
    horizon=128,
    minibatch=128,
    epochs=1,
    learning_rate=4e-5,
    bids="kumaraswamy",
)
_DEFAULTS = {
    "ppo": _PPO,
    "reinforce": dataclasses.replace(_PPO, learning_rate=1e-3),
    "valuation": Defaults(
        steps=2_048_000,
        instances=32,
        horizon=32,
        minibatch=128,
        epochs=1,
        learning_rate=5e-3,
        table_learning_rate=3e-2,
        bids="value",
        trace_decay=0.65,
        exploration=1.0,
        exploration_final=0.1,
    ),
}

_CHUNKS = 50
_LARGE_IMAGE = 16

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"bids": "beta", "time_limits": "terminal", "steps": 8_192_000},
}
"""Settings by name; ``paper`` gives ppo the published Beta bids and counts time-outs as terminal."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. A setting without a default takes one that fits learner and environment.

    Args:
        env: an environment id, such as Chain-v0 or CartPole-v1 (in Python, also an environment object).
        agent: society, or monolith: a single PPO agent as a baseline, without settings of bids and auctions, which
            are None in its configuration.
        auction: bb (first price), vickrey, ccv (credit-conserving Vickrey, the default) or env (reward only); in
            Python, also a Mechanism.
        learner: ppo, valuation or reinforce.
        clones: bidders per primitive, 2 by default.
        seeds: independent runs, trained in one vmapped call.
        steps: auctions per seed (rounded up to whole rollouts), each one environment step where primitives are
            literal actions; a monolith's decisions.
        gamma: discount; the environment's own if it names one, else 0.99.
        share_clones: whether clones of one primitive share parameters, as they do by default.
        instances: parallel market instances per seed.
        horizon: auctions per instance and update.
        log_every: updates per row of metrics; about a fiftieth of the run by default.
        minibatch: auctions per gradient step.
        epochs: passes over each rollout (ppo, valuation).
        learning_rate: of the bidding policies.
        value_learning_rate: of the value networks (ppo).
        entropy: weight of the bids' entropy (ppo, reinforce).
        clip: range of the policy ratio (ppo).
        trace_decay: λ of the contract between buyer and seller; a monolith's λ of generalised advantages.
        exploration: probability that a random bidder wins, at the start of training.
        exploration_final: that probability in the second half of training, reached linearly.
        dropout: probability that a bidder sits out an episode; two always stay.
        reserve: the other bid where a bidder has no rival.
        bids: kumaraswamy, beta or value (deterministic, valuation only).
        bid_low: lowest possible bid.
        bid_high: highest possible bid.
        hidden: widths of the networks' dense layers; none at all makes a table.
        convolutions: channels of the convolutions over images; none at all reads an image as a vector.
        stride: of the convolutions; 2 over images more than 16 pixels wide, else 1.
        time_limits: bootstrap (proceeds after a time-out are estimated) or terminal (they count as 0).
        ties: random (the default) or lowest.
        preset: paper (published settings); what is given beside it wins.
    """

    env: Any
    _: dataclasses.KW_ONLY
    agent: Literal["society", "monolith"] = "society"
    auction: Auction | None = None
    learner: str = "ppo"
    clones: int | None = None
    seeds: int = 1
    steps: int | None = None
    gamma: float | None = None
    share_clones: bool | None = None
    instances: int | None = None
    horizon: int | None = None
    log_every: int | None = None
    minibatch: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    value_learning_rate: float | None = None
    entropy: float | None = None
    clip: float | None = None
    trace_decay: float | None = None
    exploration: float | None = None
    exploration_final: float | None = None
    dropout: float | None = None
    reserve: float | None = None
    bids: str | None = None
    bid_low: float | None = None
    bid_high: float | None = None
    hidden: tuple[int, ...] | None = None
    convolutions: tuple[int, ...] | None = None
    stride: int | None = None
    time_limits: TimeLimits | None = None
    ties: Literal["random", "lowest"] | None = None
    preset: str | None = None

    def __post_init__(self) -> None:
        check_backend()
        self._set(agent=check_choice("agent", self.agent, ("society", "monolith")))
        self._set(learner=check_choice("learner", self.learner, LEARNERS))
        if self.preset is not None:
            self._set(preset=check_choice("preset", self.preset, PRESETS))
            self._fill(PRESETS[self.preset])
        if isinstance(self.env, str):
            self._set(env=str.__str__(self.env))
        adapter = self.adapter
        self._to_plain()
        fill = dataclasses.asdict(_DEFAULTS[self.learner])
        table_rate = fill.pop("table_learning_rate")
        if table_rate is not None and adapter.one_hot and not self.hidden:
            fill["learning_rate"] = table_rate
        if self.agent == "monolith":
            fill.pop("bids")
        else:
            fill |= {"auction": "ccv", "clones": 2, "share_clones": True, "ties": "random"}
        self._fill(fill | {"gamma": adapter.gamma if adapter.gamma is not None else 0.99, "time_limits": "bootstrap"})
        self._validate()
        _ = self.society  # whatever is wrong with the parts is wrong now

    def _set(self, **values: Any) -> None:
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def _fill(self, values: Mapping[str, Any]) -> None:
        """Set those of these settings that are None."""
        self._set(**{field: value for field, value in values.items() if getattr(self, field) is None})

    def _to_plain(self) -> None:
        """Convert settings, such as NumPy scalars, to plain Python values, and check them."""
        for field in _KINDS:
            self._set(**{field: plain_setting(field, getattr(self, field))})

    def _validate(self) -> None:
        if self.agent == "monolith":
            self._validate_monolith()
        within = getattr(self.adapter.env, "discount_within", self.gamma)
        if within != self.gamma:
            raise ValueError(
                f"gamma: the options of {self.adapter.name} discount within by {within:g}, not by {self.gamma:g}; give "
                "both the same"
            )
        if self.gamma == 1 and self.adapter.gamma is not None:
            raise ValueError("gamma: 1 leaves the values of an endless process undefined; use a discount below 1")
        for field, learners in _ONLY_FOR.items():
            if getattr(self, field) is not None and self.learner not in learners:
                raise ValueError(f"{field}: learner {self.learner} has no such setting, only {' and '.join(learners)}")
        if self.agent == "society" and (self.learner == "valuation") != (self.bids == "value"):
            raise ValueError(
                f"bids: learner {self.learner} cannot train {self.bids} bids; "
                "valuation takes value, ppo and reinforce take kumaraswamy or beta"
            )
        if self.updates >= 2**31:
            raise ValueError(
                f"steps: expected at most 2^31 - 1 updates of instances × horizon = {self.instances} × {self.horizon} "
                f"auctions, got {self.updates} in {self.steps} steps; use more instances or a longer horizon"
            )
        if (self.instances * self.horizon) % self.minibatch:  # type: ignore[operator]
            raise ValueError(
                f"minibatch: {self.minibatch} does not divide instances × horizon = "
                f"{self.instances} × {self.horizon} auctions; choose a divisor"
            )
        if self.dropout is not None and self.primitives * self.clones < 3:  # type: ignore[operator]
            raise ValueError(
                f"dropout: expected at least 3 bidders, because two always stay, got {self.society.bidders}; "
                "use more clones, or no dropout"
            )

    def _validate_monolith(self) -> None:
        if self.learner != "ppo":
            raise ValueError(f"learner: a monolithic agent is compared with ppo societies, got {self.learner!r}")
        if self.time_limits != "bootstrap":
            raise ValueError(
                f"time_limits: a monolithic agent estimates what a time-out cuts off, got {self.time_limits!r}"
            )
        if hasattr(self.adapter.env, "legal_actions"):
            raise ValueError(f"env: {self.adapter.name} has illegal actions, which a monolithic agent would take")
        for field in (*_MARKET, "exploration", "exploration_final", "dropout", "reserve", "bid_low", "bid_high"):
            if getattr(self, field) is not None:
                raise ValueError(f"{field}: a monolithic agent holds no auctions; leave it out")

    def as_monolith(self) -> "TrainConfig":
        """The configuration of a monolithic agent with the same settings, except those of bids and auctions.

        Raises:
            ValueError: a setting applies only to societies, such as ``dropout``.
        """
        return dataclasses.replace(self, agent="monolith", **dict.fromkeys(_MARKET))

    @functools.cached_property
    def adapter(self) -> Adapter:
        """The environment as the society sees it."""
        return adapt(make(self.env)[0] if isinstance(self.env, str) else self.env)

    @property
    def primitives(self) -> int:
        """P."""
        return self.adapter.num_actions

    @property
    def updates(self) -> int:
        """Rollouts that make up ``steps``, rounded up."""
        return -(-self.steps // (self.instances * self.horizon))  # type: ignore[operator]

    @property
    def updates_per_chunk(self) -> int:
        """Updates per compiled call, each of which gives one row of metrics."""
        return min(self.updates, self.log_every or -(-self.updates // _CHUNKS))

    @property
    def auctions_per_chunk(self) -> int:
        """Auctions of one seed between two rows of metrics."""
        return self.instances * self.horizon * self.updates_per_chunk  # type: ignore[operator]

    @property
    def chunks(self) -> int:
        """Compiled calls that make up the run."""
        return -(-self.updates // self.updates_per_chunk)

    @functools.cached_property
    def society(self) -> Society:
        """The static society these settings describe."""
        limits = {name: limit for name, limit in (("low", self.bid_low), ("high", self.bid_high)) if limit is not None}
        return Society(
            env=self.adapter,
            policy=BidPolicy(torso=self._torso, head=_HEADS[self.bids or "kumaraswamy"](**limits)),
            mechanism=auctions.mechanism("ccv" if self.auction is None else self.auction),
            clones=2 if self.clones is None else self.clones,
            share=self.share_clones is not False,
            ties=self.ties or "random",
        )

    @property
    def learner_rule(self) -> Learner:
        """The local update rule these settings describe."""
        policy = self.society.policy
        if self.learner == "valuation":
            table = not (policy.torso.hidden or policy.torso.convolutions)  # type: ignore[attr-defined]
            return Valuation(policy, minibatch=self.minibatch, epochs=self.epochs, relative=table)  # type: ignore[arg-type]
        if self.learner == "reinforce":
            return Reinforce(policy, minibatch=self.minibatch)  # type: ignore[arg-type]
        torso = mlp(*policy.torso.hidden) if not policy.torso.convolutions else policy.torso  # type: ignore[attr-defined]
        return PPO(policy, ValueNetwork(torso), minibatch=self.minibatch, epochs=self.epochs)  # type: ignore[arg-type]

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The traced settings, as numbers; replace any of them with an array to sweep over it."""
        given = {field.name: getattr(self, field.name, None) for field in dataclasses.fields(Hyperparameters)}
        given |= {"discount": self.gamma, "updates": self.chunks * self.updates_per_chunk}
        return Hyperparameters(**{name: value for name, value in given.items() if value is not None})

    @property
    def _torso(self) -> Torso:
        obs = Society(self.adapter, BidPolicy(linear(), ValueHead())).observation
        value = self.learner == "valuation"
        for field in ("convolutions", "stride"):
            if getattr(self, field) is not None and len(obs.shape) != 3:
                raise ValueError(
                    f"{field}: {self.adapter.name} observes shape {obs.shape}, no image [height, width, channels]"
                )
        if len(obs.shape) == 3:
            large = max(obs.shape[:2]) > _LARGE_IMAGE
            convolutions = self.convolutions
            if convolutions is None:
                convolutions = (16, 32) if large else (16,)
            stride = self.stride or (2 if large else 1)
            return cnn(*(self.hidden or (128,)), convolutions=convolutions, stride=stride, layer_norm=value)
        if self.adapter.one_hot:
            return linear(*(self.hidden if self.hidden is not None else () if value else (16,)))
        return mlp(*(self.hidden if self.hidden is not None else (64, 64)), layer_norm=value)


def plain_setting(field: str, value: Any) -> Any:
    """Convert the value of a setting of `TrainConfig`, such as a NumPy scalar, to a plain Python value.

    Raises:
        ValueError: the value is not valid for the setting.
    """
    if value is None or field not in _KINDS:
        return value
    if isinstance(value, Tracer) and field in _TRACED:
        raise ValueError(
            f"{field}: expected a Python number, got a value traced by jit or vmap; use train(config, "
            f"key, hyper=config.hyperparameters.replace({_TRACED[field]}=...))"
        )
    return _KINDS[field](field, value)


def check_config(config: Any) -> TrainConfig:
    """Check that ``config`` is a `TrainConfig`, and return it.

    Raises:
        ValueError: ``config`` is something else, such as the id of an environment.
    """
    if isinstance(config, TrainConfig):
        return config
    write = "TrainConfig('Chain-v0')"
    if isinstance(config, str):
        write = f"TrainConfig({config!r})"
    elif isinstance(config, Mapping):
        write = "TrainConfig(**settings)"
    raise ValueError(f"config: expected a TrainConfig, got {short_repr(config)}; write {write}")


_ONLY_FOR = {"value_learning_rate": ("ppo",), "clip": ("ppo",), "entropy": ("ppo", "reinforce")}
_HEADS: dict[str, Any] = {"kumaraswamy": KumaraswamyHead, "beta": BetaHead, "value": ValueHead}
_MARKET = ("auction", "clones", "share_clones", "bids", "ties")
"""Settings that every society has, and that are None for a monolithic agent."""


def _auction(_: str, value: Any) -> Any:
    auctions.mechanism(value)
    return str.__str__(value) if isinstance(value, str) else value


_count = functools.partial(check_int, most=2**63 - 1)
_fraction = functools.partial(check_float, least=0, most=1)
_amount = functools.partial(check_float, least=0)
_KINDS: dict[str, Callable[[str, Any], Any]] = {
    "auction": _auction,
    "share_clones": check_bool,
    "steps": _count,
    **dict.fromkeys(
        ("clones", "seeds", "instances", "horizon", "log_every", "minibatch", "epochs", "stride"), check_int
    ),
    **dict.fromkeys(("hidden", "convolutions"), check_widths),
    **dict.fromkeys(("gamma", "trace_decay", "exploration", "exploration_final", "dropout"), _fraction),
    **dict.fromkeys(("learning_rate", "value_learning_rate", "entropy", "clip"), _amount),
    **dict.fromkeys(("reserve", "bid_low", "bid_high"), check_float),
    "bids": functools.partial(check_choice, known=_HEADS),
    "time_limits": functools.partial(check_choice, known=TIME_LIMITS),
    "ties": functools.partial(check_choice, known=("random", "lowest")),
}
_TRACED = {f.name: f.name for f in dataclasses.fields(Hyperparameters)} | {"gamma": "discount"}
"""Settings that compiled programs take as arguments, with their names in `Hyperparameters`."""
