"""The settings of a training run as the user gives them, and their resolution."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jax.core import Tracer

from jaxmarket import auctions
from jaxmarket.auctions import Mechanism
from jaxmarket.environments import adapt, make
from jaxmarket.environments.adapter import Adapter
from jaxmarket.learners import LEARNERS, PPO, ActionPPO, Hyperparameters, Learner
from jaxmarket.learners.protocol import UNBOUND, numeric_settings
from jaxmarket.policies import (
    BetaHead,
    BidPolicy,
    Head,
    KumaraswamyHead,
    Torso,
    ValueHead,
    ValueNetwork,
    cnn,
    linear,
    mlp,
)
from jaxmarket.settlement import TIME_LIMITS, TimeLimits
from jaxmarket.society import LearnedPrimitives, Society
from jaxmarket.switches import check_backend
from jaxmarket.training import objects
from jaxmarket.training.actions import action_head
from jaxmarket.training.monolith import Monolith
from jaxmarket.training.population import PopulationAgents
from jaxmarket.training.settings import AgentKind, Settings
from jaxmarket.training.society import SocietyTraining
from jaxmarket.training.wide import WideMarketTraining
from jaxmarket.types import cached_property
from jaxmarket.validation import check_bool, check_choice, check_float, check_int, check_widths, short_repr

if TYPE_CHECKING:
    AgentLike = str | AgentKind
    AuctionLike = str | Mechanism
    BidsLike = str | Head
    LearnerLike = str | Learner
else:
    AgentLike = AuctionLike = BidsLike = LearnerLike = str  # the command line reads these annotations, and takes names

__all__ = [
    "AGENTS",
    "ALIASES",
    "HEADS",
    "OF_HEADS",
    "OF_LEARNERS",
    "PRESETS",
    "TrainConfig",
    "accepts",
    "check_config",
    "plain_setting",
]

AGENTS: dict[str, AgentKind] = {
    "society": SocietyTraining,
    "monolith": Monolith,
    "wide": WideMarketTraining,
    "population": PopulationAgents(),
}
"""Aliases of kinds of agents."""
HEADS: dict[str, type[Head]] = {"kumaraswamy": KumaraswamyHead, "beta": BetaHead, "value": ValueHead}
"""Aliases of bid heads."""
ALIASES: dict[str, Mapping[str, Any]] = {
    "agent": AGENTS,
    "auction": auctions.MECHANISMS,
    "learner": LEARNERS,
    "bids": HEADS,
}
"""The tables of aliases by setting. A name that is added to a table works in Python and on the command line."""
PRESETS: dict[str, dict[str, Any]] = {
    # Chang et al. (2020): 2,000 updates of 4,096 steps.
    "paper": {
        "auction": "ccv",
        "learner": PPO(
            minibatch=128,
            epochs=1,
            value_l2=1e-3,
            max_norm=40.0,
            anneal=False,
            decay_after=500,
            decay_every=100,
            decay=0.99,
            learning_rate=4e-5,
            value_learning_rate=5e-3,
            entropy=0.1,
            clip=0.2,
        ),
        "bids": BetaHead(low=0.0, high=1.0),
        "clones": 2,
        "share_clones": True,
        "steps": 8_192_000,
        "instances": 32,
        "horizon": 128,
        "trace_decay": 0.0,
        "exploration": 0.0,
        "exploration_final": 0.0,
        "persistence": 0.0,
        "dropout": 0.0,
        "reserve": 0.0,
        "time_limits": "terminal",
        "ties": "random",
    },
}
"""Settings by name; ``paper`` are the published ones: PPO with Beta bids, and time-outs count as terminal. Fields of a
preset's learner and bid head may be given as flat settings, such as ``entropy``."""

_DEFAULTS: dict[str, Any] = {
    "learner": "valuation",
    "steps": 2_048_000,
    "gamma": 0.99,
    "instances": 32,
    "horizon": 128,
    "log_every": 0,
    "auction": "ccv",
    "bids": "kumaraswamy",
    "clones": 2,
    "share_clones": True,
    "ties": "random",
    "time_limits": "bootstrap",
    "trace_decay": 0.0,
    "exploration": 0.0,
    "persistence": 0.0,
    "dropout": 0.0,
    "reserve": 0.0,
}
_ROWS = 50  # of metrics of a run
_LARGE_IMAGE = 16  # pixels
_LEARNED_DEFAULTS: dict[str, Any] = {
    "modules": 3,
    "hold": 1,
    "share_torso": False,
    "horizon": 128,
    "trace_decay": 0.95,
    "exploration": 0.0,
    "exploration_final": 0.0,
}
"""Where primitives learn, their sampled actions explore."""
_LEARNED_MINIBATCH = 512


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. A setting that is None takes a default, which may depend on others.

    ``settings`` holds the resolved settings. ``env``, ``agent``, ``auction``, ``learner`` and ``bids`` take the names
    below, ``module:name`` for an object of a module that was imported, and in Python the object itself. If such an
    object has a setting as a field, as ``PPO`` has ``entropy``, the setting is given to the object.

    Args:
        env: an environment id, such as Chain-v0 or CartPole-v1, or module:name.
        agent: society (the default); monolith: a single agent as a baseline, without settings of bids and auctions, by
            ppo (its default) or valuation, which is then Q(λ); wide: bidders that trade the goods of an environment
            with production lines; or population: agents selected by wealth, without a learner.
        auction: bb (first price, the default of a population), vickrey, ccv (credit-conserving Vickrey, the default)
            or env (reward only).
        learner: valuation (the default, and the only choice of wide), ppo or reinforce.
        primitives: actions (every primitive is an action of the environment; the default where actions are discrete) or
            learned (every module learns a policy over actions; the default where they are continuous, or where the
            environment is made for a number of modules).
        modules: number of primitives that learn; that of the environment if it names one, else 3.
        hold: steps for which the winner of an auction keeps the right to act, if primitives learn; 1 by default.
        share_torso: whether the policies over bids and actions of a module share all layers but the last; false by
            default.
        clones: bidders per primitive; 2 by default.
        seeds: independent runs, trained in one vmapped call.
        steps: auctions per seed, rounded up to whole rollouts; 2,048,000 by default, population 1,024,000. Where
            primitives are literal actions, each is one environment step. Of a wide market: rounds, in each of which
            every line sells its piece.
        gamma: discount; the environment's own if it names one, else 0.99.
        share_clones: whether clones of one primitive share parameters; true by default.
        instances: parallel market instances per seed; 32 by default, population 16.
        horizon: auctions per instance and update; 32 by default, ppo, reinforce and primitives that learn 128. Of a
            population: auctions per instance between two turnovers, 16 by default.
        log_every: updates per row of metrics; a fiftieth of the run by default.
        minibatch: auctions per gradient step; 128 by default, 512 if primitives learn.
        epochs: passes over each rollout (ppo, valuation); by default 1 for ppo and tables, 2 for networks of valuation,
            4 for a monolith trained by ppo.
        learning_rate: of the bidding policies; 1e-3 by default, 3e-2 for tables trained by valuation.
        value_learning_rate: of the value networks (ppo); 5e-3 by default.
        entropy: weight of the bids' entropy; 0.05 by default (ppo), 0.01 for a monolith, 0.1 (reinforce).
        clip: range of the policy ratio (ppo); 0.2 by default.
        action_learning_rate: of the policies of primitives that learn; 3e-4 by default.
        action_entropy: weight of the entropy of their actions; 0.01 by default.
        action_clip: range of their policy ratio; 0.2 by default.
        action_epochs: their passes over each rollout; 4 by default.
        trace_decay: λ of the λ-returns in utilities, from 0 (one step) to 1; 0.8 by default, ppo and primitives that
            learn 0.95, reinforce 0.
        exploration: probability that a random bidder wins, or that a monolith takes a random action, at the start of
            training; 1 by default, ppo, reinforce and primitives that learn 0.
        exploration_final: that probability in the second half of training, reached linearly; 0.1 by default, like
            exploration where that is set.
        persistence: probability that a step explores, or does not, as the previous step did, with the same bidder (or
            the same random numbers of an action, if primitives learn), in half of the rollouts; 0.9 by default, ppo
            and reinforce 0.
        dropout: probability that a bidder sits out an episode; two always stay; 0 by default.
        reserve: the highest other bid where only one bidder is eligible; 0 by default.
        bids: value (deterministic; the default and only choice of valuation), kumaraswamy (the default of the other
            learners) or beta.
        bid_low: lowest possible bid; 0 if only bid_high is given. If neither is given, value bids are unbounded, and
            other bids have the range of the revenues that their module received.
        bid_high: highest possible bid; 1 if only bid_low is given.
        hidden: widths of the networks' dense layers; given without a width, over one-hot observations, a table of
            states. By default 16 over one-hot observations (valuation: a table), 128 over images, 64 64 over other
            observations.
        convolutions: channels of the convolutions over images, 16 by default, 16 32 over images more than 16 pixels
            wide; given without a channel, the image is read as a vector.
        stride: of the convolutions; 1 by default, 2 over images more than 16 pixels wide.
        time_limits: bootstrap (the default: proceeds after a time-out are estimated) or terminal (they count as 0).
        ties: random (the default) or lowest.
        preset: paper (published settings); other settings take precedence.

    Raises:
        ValueError: a setting is invalid, does not apply, or is given twice: beside an object that has it as a field.
    """

    env: Any
    _: dataclasses.KW_ONLY
    agent: AgentLike = "society"
    auction: AuctionLike | None = None
    learner: LearnerLike | None = None
    primitives: Literal["actions", "learned"] | None = None
    modules: int | None = None
    hold: int | None = None
    share_torso: bool | None = None
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
    action_learning_rate: float | None = None
    action_entropy: float | None = None
    action_clip: float | None = None
    action_epochs: int | None = None
    trace_decay: float | None = None
    exploration: float | None = None
    exploration_final: float | None = None
    persistence: float | None = None
    dropout: float | None = None
    reserve: float | None = None
    bids: BidsLike | None = None
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
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            object.__setattr__(self, field.name, plain_setting(field.name, value))
        _ = self.settings.trainable  # raises now what is wrong with any part

    def as_monolith(self) -> "TrainConfig":
        """The configuration of a monolithic agent with the same settings, except those of bids and auctions.

        Raises:
            ValueError: a setting applies only to societies, such as ``dropout``.
        """
        return dataclasses.replace(
            self, agent="monolith", **dict.fromkeys(("auction", "clones", "share_clones", "bids", "ties"))
        )

    @cached_property
    def adapter(self) -> Adapter:
        """The environment as the society sees it."""
        env = self.env
        if isinstance(env, str):
            env = _made("env", env) if ":" in env else make(env)[0]
            env = env() if isinstance(env, type) else env
        return adapt(env)

    @cached_property
    def settings(self) -> Settings:
        """These settings resolved: defaults filled in, objects built from their aliases and bound.

        Raises:
            ValueError: settings do not fit each other.
        """
        return _resolve(self)


def _resolve(config: TrainConfig) -> Settings:
    given = {f.name: value for f in dataclasses.fields(config) if (value := getattr(config, f.name)) is not None}
    said = PRESETS.get(config.preset or "", {}) | given
    if "exploration" in given and "exploration_final" not in given:
        said.pop("exploration_final", None)  # it follows exploration, and not the preset
    adapter, agent = config.adapter, _made("agent", config.agent)
    unused = getattr(agent, "unused", ())
    for field in unused:
        if field in said:
            agent_label, source = _label(config.agent), "it" if field in given else f"preset {config.preset}"
            raise ValueError(f"{field}: agent {agent_label} has no such setting; leave {source} out")
    own_defaults = dict(getattr(agent, "defaults", {}))
    defaults = _DEFAULTS | ({} if adapter.gamma is None else {"gamma": adapter.gamma})
    rule, hidden = (said.get(name, own_defaults.pop(name, defaults.pop(name, None))) for name in ("learner", "hidden"))
    if isinstance(rule, str):
        rule = getattr(agent, "learners", {}).get(rule, rule)
    ours = "learner" not in given or rule is not given["learner"]
    learner, numbers = _component("learner", rule, given, OF_LEARNERS, preset=ours)
    learner_defaults = {k: v for k, v in getattr(learner, "defaults", {}).items() if k not in unused}
    primitives = said.get("primitives", "actions" if adapter.box is None and adapter.modules is None else "learned")
    learns = "primitives" not in unused and primitives == "learned"
    defaults = defaults | learner_defaults | (_learned_defaults(adapter) if learns else {}) | own_defaults
    if learns and ours and "minibatch" not in given:
        learner = dataclasses.replace(learner, minibatch=_LEARNED_MINIBATCH)
    chosen = {name: said.get(name, value) for name, value in defaults.items()}
    chosen.setdefault("exploration_final", said.get("exploration_final", chosen["exploration"]))
    head, bounds = _component("bids", chosen["bids"], given, OF_HEADS, preset="bids" not in given)
    by_value = getattr(learner, "estimates_values", None)
    if "bids" not in unused and by_value is not None and by_value != isinstance(head, ValueHead):
        raise ValueError(
            f"bids: learner {_label(_alias('learner', rule, numbers))} cannot train "
            f"{_label(_alias('bids', chosen['bids'], bounds))} bids; valuation takes "
            "value, ppo and reinforce take kumaraswamy or beta"
        )
    torso, layers = _torso(config, adapter, hidden, table=bool(by_value))
    learned, action_learner = None, None
    if learns:
        chosen["primitives"] = primitives
        acting = torso if chosen["share_torso"] else _torso(config, adapter, hidden, table=False)[0]
        learned = LearnedPrimitives(
            BidPolicy(acting, action_head(adapter)), chosen["modules"], chosen["hold"], chosen["share_torso"]
        )
        action_learner = _action_learner(given, learned.policy, learner.minibatch)
        chosen |= {name: getattr(action_learner, own) for name, own in OF_ACTIONS.items()}
    else:
        _check_absent(("modules", "hold", "share_torso", *OF_ACTIONS), given)
        if adapter.box is not None and getattr(agent, "continuous", False):  # the agent takes the place of a module
            learned = LearnedPrimitives(BidPolicy(torso, action_head(adapter)), 1)
    society = Society(
        env=adapter,
        policy=BidPolicy(torso=torso, head=head),
        mechanism=_made("auction", chosen["auction"]),
        clones=chosen["clones"],
        share=chosen["share_clones"],
        ties=chosen["ties"],
        learned=learned,
    )
    value_torso = mlp(*torso.hidden) if not torso.convolutions else torso
    learner = learner.bind(society.policy, ValueNetwork(value_torso))
    updates = -(-chosen["steps"] // (chosen["instances"] * chosen["horizon"]))
    chosen["log_every"] = min(updates, chosen["log_every"] or -(-updates // _ROWS))
    values = (
        {"env": config.env, "seeds": config.seeds, "preset": config.preset}
        | chosen
        | {"agent": _alias("agent", config.agent), "auction": _alias("auction", chosen["auction"])}
        | {"learner": _alias("learner", rule, numbers), "bids": _alias("bids", chosen["bids"], bounds)}
        | {name: getattr(learner, own) for name, own in numbers.items()}
        | {name: limit for name, own in bounds.items() if _set(limit := getattr(head, own))}
        | layers
    )
    order = [f.name for f in dataclasses.fields(TrainConfig) if f.name not in unused]
    names = {f.name for f in dataclasses.fields(Settings)}
    settings = Settings(
        adapter=adapter,
        agent=agent,
        society=society,
        learner=learner,
        action_learner=action_learner,
        seeds=config.seeds,
        updates_per_chunk=chosen["log_every"],
        values={name: values[name] for name in order if values.get(name) is not None},
        **{name: value for name, value in chosen.items() if name in names},
    )
    _check(settings)
    return settings


def _check_absent(names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Check that no setting of primitives that learn was given."""
    for name in names:
        if name in given:
            raise ValueError(f"{name}: applies to primitives that learn; leave it out, or use primitives='learned'")


def _action_learner(given: Mapping[str, Any], policy: BidPolicy, minibatch: int) -> ActionPPO:
    """The learner of actions with the settings that the user gave."""
    learner = ActionPPO(**{own: given[name] for name, own in OF_ACTIONS.items() if name in given})
    return dataclasses.replace(learner.bind(policy, UNBOUND), minibatch=minibatch)


def _learned_defaults(adapter: Adapter) -> dict[str, Any]:
    """The defaults of primitives that learn; an environment may be made for a number of them."""
    return _LEARNED_DEFAULTS if adapter.modules is None else _LEARNED_DEFAULTS | {"modules": adapter.modules}


def _component(
    field: str, value: Any, given: Mapping[str, Any], names: Mapping[str, str], *, preset: bool
) -> tuple[Any, dict[str, Any]]:
    """The learner or bid head, built from its alias and the flat settings that are its fields.

    Args:
        field: the setting.
        value: an object, an alias, or ``module:name``.
        given: settings that the user gave.
        names: fields of the object by flat setting.
        preset: whether the value is that of a preset or a default, whose fields flat settings replace.

    Returns:
        The object, and the names of its fields by flat setting.
    """
    found = _made(field, value)
    cls = found if isinstance(found, type) else type(found)
    fields = _fields(cls)
    flat = {name: own for name, own in names.items() if own in fields}
    given_flat = {name: given[name] for name in names if name in given}
    for name, setting in given_flat.items():
        if name not in flat:
            others = [alias for alias, kind in ALIASES[field].items() if names[name] in _fields(kind)]
            remedy = "leave it out" + f", or use {field} {' or '.join(others)}" * bool(others)
            raise ValueError(f"{name}: {field} {_label(value)} has no such setting; {remedy}")
        if found is not cls and not preset:
            raise ValueError(
                f"{name}: {field} is an object that has this setting; write {cls.__name__}({flat[name]}={setting!r})"
            )
    if found is cls:
        return cls(**{flat[name]: setting for name, setting in given_flat.items()}), flat
    if given_flat:
        found = dataclasses.replace(found, **{flat[name]: setting for name, setting in given_flat.items()})  # type: ignore[type-var]
    for name, setting in numeric_settings(found).items() if fields else ():
        if setting is not None:
            check_float(f"{field}.{name}", setting)
    plain = {own: plain_setting(name, setting) for name, own in flat.items() if _set(setting := getattr(found, own))}
    return (dataclasses.replace(found, **plain) if plain else found), flat  # type: ignore[type-var]


def _fields(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls) if f.init} if dataclasses.is_dataclass(cls) else set()


def _set(value: Any) -> bool:
    """Whether a field has a value, and not None or an infinite bound."""
    return value is not None and not (isinstance(value, float) and math.isinf(value))


def _made(field: str, value: Any) -> Any:
    """The object, or the class of objects, that an alias or ``module:name`` stands for; an object as it is."""
    if not isinstance(value, str):
        return value
    if ":" not in value:
        return ALIASES[field][value]
    found = objects.find(value)
    if found is objects.ABSENT or not accepts(field, found):
        module, wrong = value.partition(":")[0], "no object" if found is objects.ABSENT else f"no {field}"
        raise ValueError(
            f"{field}: {wrong} {value!r} among the imported modules; define it there, and import {module} first (on "
            f"the command line --import {module})"
        )
    return found


def _alias(field: str, value: Any, flat: Mapping[str, str] | None = None) -> Any:
    """The alias of an object that equals one of ours but for fields that are settings; else the value itself."""
    for alias, known in ALIASES[field].items():
        if value is known:
            return alias
        if flat is not None and type(value) is known:
            default = known()
            own = {name: getattr(default, name) for name in flat.values()}
            if dataclasses.replace(value, **own) == default:
                return alias
    return value


def _label(value: Any) -> str:
    return value if isinstance(value, str) else type(value).__name__


def _torso(
    config: TrainConfig, adapter: Adapter, hidden: tuple[int, ...] | None, *, table: bool
) -> tuple[Torso, dict[str, Any]]:
    """The layers below a bid or value head, and their effective settings.

    Args:
        config: the settings.
        adapter: the environment.
        hidden: widths of dense layers that the user or the kind of agent chose; None for the defaults.
        table: whether the learner estimates values, for which a table is the default over one-hot observations.
    """
    alone = "primitives" in getattr(_made("agent", config.agent), "unused", ())  # an agent without modules
    obs = adapter.observation if alone else adapter.observation_of_module
    image = len(obs.shape) == 3
    for field in ("convolutions", "stride"):
        if getattr(config, field) is not None and not image:
            raise ValueError(
                f"{field}: expected an environment with images [height, width, channels], {adapter.name} has "
                f"observations of shape {obs.shape}; leave it out"
            )
    if image:
        large = max(obs.shape[:2]) > _LARGE_IMAGE
        convolutions = config.convolutions
        if convolutions is None:
            convolutions = (16, 32) if large else (16,)
        stride, hidden = config.stride or (2 if large else 1), hidden or (128,)
        torso = cnn(*hidden, convolutions=convolutions, stride=stride, layer_norm=table)
        return torso, {"hidden": hidden, "convolutions": convolutions, "stride": stride}
    if adapter.one_hot and obs == adapter.observation:
        hidden = hidden if hidden is not None else () if table else (16,)
        return linear(*hidden), {"hidden": hidden}
    hidden = hidden if hidden is not None else (64, 64)
    return mlp(*hidden, layer_norm=table), {"hidden": hidden}


def _check(settings: Settings) -> None:
    """Check that settings fit each other."""
    s, adapter = settings, settings.adapter
    within = getattr(adapter.env, "discount_within", s.gamma)
    if within != s.gamma:
        raise ValueError(
            f"gamma: the options of {adapter.name} discount by {within:g} inside an option, got {s.gamma:g}; use the "
            "same discount for both"
        )
    if s.gamma == 1 and adapter.gamma is not None:
        raise ValueError(
            f"gamma: expected a discount below 1, because {adapter.name} may never end, got 1; use 0.99, for example"
        )
    if s.updates >= 2**31:
        raise ValueError(
            f"steps: expected at most 2^31 - 1 updates of instances × horizon = {s.instances} × {s.horizon} "
            f"auctions, got {s.updates} in {s.steps} steps; use more instances or a longer horizon"
        )
    if s.minibatch is not None and (s.instances * s.horizon) % s.minibatch:
        raise ValueError(
            f"minibatch: {s.minibatch} does not divide instances × horizon = "
            f"{s.instances} × {s.horizon} auctions; choose a divisor"
        )
    if s.dropout and s.society.bidders < 3:
        raise ValueError(
            f"dropout: expected at least 3 bidders, because two always stay, got {s.society.bidders}; "
            "use more clones, or no dropout"
        )


def plain_setting(field: str, value: Any) -> Any:
    """Convert the value of a setting of `TrainConfig`, such as a NumPy scalar, to a plain Python value.

    Raises:
        ValueError: the value is not valid for the setting.
    """
    if isinstance(value, Tracer) and field in _TRACED:
        raise ValueError(
            f"{field}: expected a Python number, got a value traced by jit or vmap; use train(config, "
            f"key, hyper=config.settings.hyperparameters.replace({_TRACED[field]}=...))"
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


OF_LEARNERS = {
    name: name for name in ("minibatch", "epochs", "learning_rate", "value_learning_rate", "entropy", "clip")
}
OF_ACTIONS = {
    **{name: name for name in ("action_learning_rate", "action_entropy", "action_clip")},
    "action_epochs": "epochs",
}
"""Fields of `ActionPPO` by setting."""
OF_HEADS = {"bid_low": "low", "bid_high": "high"}
"""Fields of bid heads by setting; those of learners have the names of their settings."""
_ATTRIBUTES = {
    "env": ("reset", "step"),
    "agent": ("of",),
    "auction": ("price", "payout"),
    "learner": ("init", "update", "bind"),
    "bids": ("distribution", "outputs"),
}


def accepts(field: str, value: Any) -> bool:
    """Whether an object, or a class of objects, is of the kind that a setting takes."""
    return all(hasattr(value, name) for name in _ATTRIBUTES[field])


def _object(field: str, value: Any) -> Any:
    """An alias or ``module:name`` as a plain string; an object as it is."""
    if isinstance(value, str):
        return str.__str__(value) if ":" in value else check_choice(field, value, ALIASES[field])
    if isinstance(value, type) and field != "agent":
        raise ValueError(f"{field}: expected an object, got the class {value.__name__}; write {value.__name__}()")
    if not accepts(field, value):
        raise ValueError(
            f"{field}: expected {', '.join(ALIASES[field])}, or an object with {', '.join(_ATTRIBUTES[field])}, got "
            f"{short_repr(value)}"
        )
    return value


_count = functools.partial(check_int, most=2**63 - 1)
_fraction = functools.partial(check_float, least=0, most=1)
_amount = functools.partial(check_float, least=0)
_KINDS: dict[str, Callable[[str, Any], Any]] = {
    "env": lambda _, value: str.__str__(value) if isinstance(value, str) else value,
    **dict.fromkeys(("agent", "auction", "learner", "bids"), _object),
    **dict.fromkeys(("share_clones", "share_torso"), check_bool),
    "steps": _count,
    **dict.fromkeys(
        (
            *(
                "modules",
                "hold",
                "clones",
                "seeds",
                "instances",
                "horizon",
                "log_every",
                "minibatch",
                "epochs",
                "stride",
            ),
            "action_epochs",
        ),
        check_int,
    ),
    "primitives": functools.partial(check_choice, known=("actions", "learned")),
    **dict.fromkeys(("hidden", "convolutions"), check_widths),
    **dict.fromkeys(("gamma", "trace_decay", "exploration", "exploration_final", "persistence", "dropout"), _fraction),
    **dict.fromkeys(("learning_rate", "value_learning_rate", "entropy", "clip"), _amount),
    **dict.fromkeys(("action_learning_rate", "action_entropy", "action_clip"), _amount),
    **dict.fromkeys(("reserve", "bid_low", "bid_high"), check_float),
    "time_limits": functools.partial(check_choice, known=TIME_LIMITS),
    "ties": functools.partial(check_choice, known=("random", "lowest")),
    "preset": functools.partial(check_choice, known=PRESETS),
}
_TRACED = {f.name: f.name for f in dataclasses.fields(Hyperparameters)} | {"gamma": "discount"}
"""Settings that compiled programs take as arguments, with their names in `Hyperparameters`."""
