"""Learned primitives: do modules specialise, and is it the market that helps, or the mixture?

In `Regimes` every action means something else in each of four regimes. A society whose modules learn to act is compared
with agents of as many parameters: one network, a mixture of experts and an option-critic, all trained by PPO. The
specialisation of the parts is the information that the regime gives about the part that acts. Where regimes are
lasting, agents learn in one regime for a long time, and the return also measures what they forget of the others.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxmarket.environments import Regimes
from jaxmarket.experiments.claims import Claim, at, separated
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Quick, Table, by_condition, column
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.tuning import grid_conditions, tuning_table
from jaxmarket.keys import key_for, key_of
from jaxmarket.metrics import mutual_information
from jaxmarket.runs.estimates import interquartile_mean
from jaxmarket.runs.measures import final, parameters, steps_to, while_learning
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.runs.specialists import decisions
from jaxmarket.runs.sweeps import combinations
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.experts import MixtureOfExperts, OptionCritic
from jaxmarket.training.pinned import ANNEALED_MONOLITH, LEARNED_BY_PPO, LEARNED_SOCIETY, train_config
from jaxmarket.view import plotting

__all__ = ["ARMS", "EXPERIMENT", "config"]

_ENV, _REGIMES = "Regimes-v0", 4
_BEST = Regimes().optimal_return()
_STEPS = 507_904  # 124 rollouts
_LASTING, _LASTING_STEPS = 4096, 524_288  # every regime once, for 32 rollouts
_MOST = Regimes(lasting=_LASTING).optimal_return()
_BUDGET: dict[str, Any] = {"instances": 32, "horizon": 128, "minibatch": 512, "trace_decay": 0.95, "log_every": 4}
_SOCIETY: dict[str, Any] = {"base": LEARNED_SOCIETY, "persistence": 0.0}
TUNED: dict[str, dict[str, Any]] = {
    "specialists": {"learning_rate": 3e-2, "action_learning_rate": 3e-2, "action_entropy": 0.03, "exploration": 1.0},
    "one network": {"learning_rate": 3e-2, "entropy": 0.003},
    "mixture": {"learning_rate": 3e-2, "entropy": 0.003},
    "option-critic": {"learning_rate": 3e-2, "entropy": 0.003},
}
TUNED_SMALL = {"learning_rate": 1e-2, "action_learning_rate": 1e-2, "action_entropy": 0.03, "exploration": 1.0}
"""Of small specialists. All are the best settings of `GRIDS`; see the table ``tuning`` of a ``--full`` run."""

_BY_PPO: dict[str, Any] = {"base": LEARNED_BY_PPO, "learning_rate": 3e-2, "entropy": 0.003, "exploration": 0.0}
TUNED_LASTING: dict[str, dict[str, Any]] = {
    "specialists": {"learning_rate": 1e-2, "action_learning_rate": 1e-2, "action_entropy": 0.03, "exploration": 0.0},
    "one network": {"learning_rate": 1e-2, "entropy": 0.3},
    "mixture": {"learning_rate": 1e-2, "entropy": 0.03},
    "option-critic": {"learning_rate": 1e-2, "entropy": 0.1},
}
"""Of all agents where regimes are lasting."""


def _society(modules: int, width: int, **settings: Any) -> dict[str, Any]:
    return _SOCIETY | TUNED["specialists"] | {"modules": modules, "hidden": (width,)} | settings


def _ppo(arm: str, width: int, agent: Any) -> dict[str, Any]:
    return TUNED[arm] | {"base": ANNEALED_MONOLITH, "hidden": (width,), "agent": agent}


ARMS: dict[str, dict[str, Any]] = {
    "specialists": _society(4, 4),
    "one network": _ppo("one network", 19, "monolith"),
    "mixture": _ppo("mixture", 4, MixtureOfExperts(4)),
    "option-critic": _ppo("option-critic", 4, OptionCritic(4, value_hidden=(6,))),
    "no payments": _society(4, 4, auction="env"),
    "1 module": _society(1, 16),
    "2 modules": _society(2, 8),
    "8 modules": _society(8, 2),
    "specialists, small": _society(4, 2, **TUNED_SMALL),
    "one network, small": _ppo("one network", 9, "monolith"),
    "mixture, small": _ppo("mixture", 2, MixtureOfExperts(4, value_hidden=(6,))),
    "option-critic, small": _ppo("option-critic", 2, OptionCritic(4, value_hidden=(2,))),
    "bids by PPO, small": _society(4, 2, **_BY_PPO),
}
"""What is compared. Widths are such that all agents have about 364 parameters, and those that are small about 178; but
bids by PPO need value networks and have 260."""
for _arm in (*TUNED, "no payments", "1 module"):
    _tuned = TUNED_LASTING.get(_arm, TUNED_LASTING["specialists"])
    ARMS[f"{_arm}, lasting"] = ARMS[_arm] | _tuned | {"env": Regimes(lasting=_LASTING), "steps": _LASTING_STEPS}
_CART_POLE = _society(3, 64, hidden=(64, 64), env="CartPole-v1", gamma=0.99, steps=262_144, persistence=0.9) | {
    **{"learning_rate": 1e-3, "action_learning_rate": 3e-4, "action_entropy": 0.01, "exploration": 0.0},
}
_FORMS: dict[str, dict[str, Any]] = {"two networks": {}, "one torso": {"share_torso": True}, "hold 4": {"hold": 4}}
FORMS = {
    f"{task}, {form}": settings | own
    for task, settings in (("CartPole-v1", _CART_POLE), (_ENV, ARMS["specialists"]))
    for form, own in _FORMS.items()
}
"""Societies whose modules hold the right to act, or have one torso for bids and actions."""
_QUICK = ("specialists", "one network", "mixture")


def _grid(society: bool, entropies: list[float], exploration: list[float]) -> list[dict[str, Any]]:
    """Learning rates and entropy weights, which are the same for all agents; societies have more of exploration."""
    axes = {"learning_rate": [3e-3, 1e-2, 3e-2], ("action_entropy" if society else "entropy"): entropies}
    tried = combinations(axes | ({"exploration": exploration} if society else {}))
    return [each | {"action_learning_rate": each["learning_rate"]} for each in tried] if society else tried


GRIDS: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("specialists", "specialists, small"), _grid(True, [0.003, 0.01, 0.03], [0.0, 1.0])),
    **dict.fromkeys(("one network", "mixture", "option-critic"), _grid(False, [0.003, 0.01, 0.03], [])),
    **{f"{arm}, lasting": _grid(arm == "specialists", [0.03, 0.1, 0.3], [0.0]) for arm in TUNED},
}
"""Other small agents than specialists have the settings of the larger ones."""
_TUNING_SEED, _TUNING_SEEDS = 5, 4
_PLAYED, _INSTANCES = 256, 16  # decisions of each of several instances


# --- conditions


def config(arm: str, **settings: Any) -> TrainConfig:
    """The configuration of an arm; ``settings`` override its own."""
    chosen: dict[str, Any] = {"env": _ENV, "steps": _STEPS, **_BUDGET, **(ARMS | FORMS)[arm], **settings}
    return train_config(**chosen)


def _arms(scope: Scope) -> tuple[str, ...]:
    return _QUICK if scope.quick else tuple(ARMS)


def parts_of(arm: str) -> int:
    """The number of primitives, experts or options; 1 of an agent that is one network."""
    settings = ARMS[arm]
    return settings.get("modules") or getattr(settings["agent"], "experts", 1)


def _specialise(scope: Scope) -> tuple[str, ...]:
    return tuple(arm for arm in _arms(scope) if parts_of(arm) > 1)


def _conditions(scope: Scope) -> list[Condition]:
    wanted: list[Condition] = [Train(arm, config(arm)) for arm in _arms(scope)]
    for arm in _specialise(scope):
        wanted.append(Compute(f"parts-{arm}", functools.partial(acting, arm, scope.seed), inputs=(arm,)))
    wanted += [] if scope.quick else [Train(form, config(form)) for form in FORMS]
    wanted.append(Compute("parts-untrained", functools.partial(acting, "specialists", scope.seed)))
    return wanted + (grid_conditions(GRIDS, _tried) if scope.full else [])


def _tried(name: str, arm: str, setting: Mapping[str, Any]) -> list[Condition]:
    return [Train(name, config(arm, **setting), seeds=_TUNING_SEEDS, seed=_TUNING_SEED)]


def acting(arm: str, seed: int, keys: Any, run: SavedRun | None = None) -> Arrays:
    """Who acts where: ``counts`` f [seeds, R, P], their ``information`` in bits and ``largest share``, f [seeds].

    Args:
        arm: the kind of agent.
        seed: of all randomness.
        keys: one for each seed, of new networks.
        run: the trained networks; new ones by default.
    """
    settings = config(arm, env=_ENV).settings  # in which instances meet all regimes soon
    trainable, hyper = settings.trainable, settings.hyperparameters.as_arrays()
    if run is None:
        params = jax.vmap(lambda key: trainable.init(key, trainable.env.default_params, hyper).learner.params)(keys)
    else:
        params = run.params
    played = jax.random.split(key_for(key_of(seed), "measurement"), (len(keys), _INSTANCES))
    shape = _REGIMES, parts_of(arm)
    counts = decisions(trainable.player(greedy=False), params, played, Regimes().regime_of, shape, _PLAYED)
    information = jax.vmap(functools.partial(mutual_information, corrected=True))(counts)
    most = (counts.sum(1) / counts.sum((1, 2))[:, None]).max(1)
    return {"counts": np.asarray(counts), "information": np.asarray(information), "largest share": np.asarray(most)}


# --- claims

_TASKS = {"364 parameters": "", "178 parameters": ", small", "lasting regimes": ", lasting"}
_OTHERS = {"one network": "one network", "mixture": "the mixture of experts", "option-critic": "the option-critic"}


def _above(first: str, second: str, text: str) -> Claim:
    return separated(text, at(first, "return"), at(second, "return"))


def _claims(scope: Scope) -> list[Claim]:
    claims = []
    for label, task in _TASKS.items():
        specialists, mixture = f"specialists{task}", f"mixture{task}"
        if specialists not in _arms(scope):
            continue
        for arm, name in _OTHERS.items():
            text = f"[{label}] specialists have a higher return than {name}"
            claims += [_above(specialists, arm + task, text)] if arm + task in _arms(scope) else []
        text = f"[{label}] the mixture of experts has a higher return than one network"
        claims += [_above(mixture, f"one network{task}", text)]
    for other, text in (
        ("untrained", "modules specialise: the regime tells more about the winner than in an untrained society"),
        ("mixture", "the regime tells more about the winner than about the expert that the mixture's gate draws"),
    ):
        claims.append(separated(text, at("parts-specialists", "information"), at(f"parts-{other}", "information")))
    for label, task in (("", ""), ("[lasting regimes] ", ", lasting")) if not scope.quick else ():
        first = f"specialists{task}"
        text = f"{label}specialists have a higher return than without payments"
        claims.append(_above(first, f"no payments{task}", text))
        text = f"{label}four modules have a higher return than one of their total size"
        claims.append(_above(first, f"1 module{task}", text))
    return claims


# --- tables


def _rows(results: Results, *, lasting: bool = False) -> Iterator[dict[str, Any]]:
    for arm in (arm for arm in _arms(results.scope) if arm.endswith("lasting") == lasting):
        parts = f"parts-{arm}"
        steps = interquartile_mean(results.measure(arm, "steps to 90%") / 1000)
        yield {
            "arm": arm.removesuffix(", lasting"),
            "parts": parts_of(arm),
            "parameters": int(results.measure(arm, "parameters")[0]),
            "return": interquartile_mean(results.measure(arm, "return")),
            "lowest seed": float(results.measure(arm, "return").min()),
            "while learning": interquartile_mean(results.measure(arm, "while learning")),
            **({} if lasting else {"k steps": steps}),
            "bits": interquartile_mean(results.measure(parts, "information")) if parts in results else None,
            "largest share": interquartile_mean(results.measure(parts, "largest share")) if parts in results else None,
        }


def _note(results: Results) -> str:
    untrained = interquartile_mean(results.measure("parts-untrained", "information"))
    return (
        "interquartile mean over seeds ± the larger side of its 95% bootstrap interval\n"
        f"return: greedy, {_BEST:.2f} is optimal · while learning: sampled, in the last tenth\n"
        "k steps: until 90% of that while learning; other seeds count as the whole run\n"
        "bits: information that the regime gives about the part that acts, at most 2 (1 with two parts); "
        f"{untrained} in an untrained society\n"
        "largest share: of all decisions, of the part that acts most"
    )


def _form_rows(results: Results) -> Any:
    columns: dict[str, Any] = {"parameters": column("parameters", lambda of_seeds: int(of_seeds[0]))}
    columns |= {"return": "return", "lowest seed": column("return", np.min), "while learning": "while learning"}
    return by_condition(columns, first="society", names=[] if results.scope.quick else list(FORMS))(results)


_NOTE_LASTING = (
    "every regime comes once, and lasts 4,096 steps of each of 32 instances\n"
    f"return: greedy, after training, over an episode with all regimes; {_MOST:.0f} is optimal\n"
    "while learning: sampled, over all of training, which is one episode\n"
    "bits, largest share: where regimes change with every goal, as above"
)


# --- figures


def _draw_winners(results: Results) -> Any:
    """Of each agent with four parts, the seed with the highest return; parts are numbered by the share they have."""
    shown = ["untrained", *(arm for arm in _specialise(results.scope) if arm in TUNED)]
    fig, axes = plotting.figure(columns=len(shown), width=3.4, height=2.6)
    for ax, arm in zip(axes, shown, strict=True):
        seed = 0 if arm == "untrained" else results[arm].best_seed
        counts = results[f"parts-{arm}"]["counts"][seed]
        counts = counts[:, np.argsort(-counts.sum(0))]
        bits = max(0.0, results.measure(f"parts-{arm}", "information")[seed])
        regions = [f"regime {regime}" for regime in range(_REGIMES)]
        plotting.draw_winners(
            ax, counts, regions, [f"part {i + 1}" for i in range(counts.shape[1])], f"{arm}: {bits:.2f} bits"
        )
    plotting.legend_below(fig)
    return fig


def _draw_curves(results: Results) -> Any:
    names = [arm for arm in _arms(results.scope) if arm.partition(",")[0] in TUNED and not arm.endswith("lasting")]
    sizes = [[arm for arm in names if arm.endswith("small") == small] for small in (False, True)]
    sizes = [arms for arms in sizes if arms]
    fig, axes = plotting.figure(columns=len(sizes), width=5.2, height=3.4)
    best = {"optimum": _BEST}
    for ax, arms in zip(axes, sizes, strict=True):
        runs = {arm.partition(",")[0]: results[arm] for arm in arms}
        title = f"about {int(results.measure(arms[0], 'parameters')[0])} parameters"
        plotting.draw_metric_curves(ax, runs, "return_mean", title=title, levels=best)
        ax.set(xscale="linear", ylabel="return during training", ylim=(0, None))
        plotting.step_axis(ax, "environment steps per seed")
    plotting.legend_below(fig)
    return fig


def _draw_forgetting(results: Results) -> Any:
    """The rewards of all agents while one regime after the other lasts; not in a quick run."""
    if results.scope.quick:
        return None
    fig, axes = plotting.figure(width=9.0, height=3.4)
    runs = {arm: results[f"{arm}, lasting"] for arm in TUNED}
    plotting.draw_metric_curves(axes[0], runs, "welfare", levels={"optimum": _MOST / (_REGIMES * _LASTING)})
    axes[0].set(xscale="linear", ylabel="goals per step during training", ylim=(0, None))
    for steps in range(0, _LASTING_STEPS, _LASTING * _BUDGET["instances"]):
        axes[0].axvline(steps, color="black", linewidth=0.3)
    plotting.step_axis(axes[0], "environment steps per seed; vertical lines: the regime changes")
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="learned-primitives",
    shows="modules that learn to act: specialisation, against one network and mixtures with a gate",
    source="Chang et al. (2020), §3; Jacobs et al. (1991); Bacon et al. (2017)",
    conditions=_conditions,
    measures={
        "return": final(),
        "while learning": while_learning(),
        "steps to 90%": steps_to(0.9 * _BEST),
        "parameters": parameters,
    },
    claims=_claims,
    tables=[
        Table("arms", lambda results: f"four regimes, {_STEPS / 1000:.0f} k steps", _rows, _note),
        Table("lasting", "four lasting regimes, 524 k steps", functools.partial(_rows, lasting=True), _NOTE_LASTING),
        Table(
            "forms",
            "options that learn, and modules with one torso",
            _form_rows,
            "hold: steps for which a winner keeps the right to act · one torso: of bids and actions\n"
            f"CartPole-v1: 3 modules with layers of 64 and 64 units, 262 k steps · {_ENV}: specialists, as above",
        ),
        tuning_table(
            f"grids, {_TUNING_SEEDS} separate seeds",
            GRIDS,
            {
                "return": column("return", np.mean),
                "lowest": column("return", np.min),
                "while learning": column("while learning", np.mean),
            },
            lambda row: -row["return" if row["arm"].endswith("lasting") else "while learning"],
            "best: the highest mean return during the last tenth of training; of lasting regimes, after training",
        ),
    ],
    figures={"learning_curves": _draw_curves, "winners": _draw_winners, "forgetting": _draw_forgetting},
    seeds=8,
    quick=Quick(seeds=2, steps=0.1),
)
