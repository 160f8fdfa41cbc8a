"""The replay page: the auctions of recorded episodes as one HTML page that needs no network.

A `Replay` holds episodes of any kind of market in one form: accounts, and steps with bids, winners, payments and
wealth. `jaxmarket.view.episodes` records those of societies, populations and wide markets, `jaxmarket.host.replay`
those of host markets, and `jaxmarket.runs.watching.watch` those of a training run. The page itself is
``replay.html``: a template without data, whose script only ever inserts text as text.

Every `ReplayEpisode` is checked when it is made: its payments explain every change of wealth.
"""

import base64
import dataclasses
import hashlib
import html
import io
import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxmarket.types import cached_property
from jaxmarket.validation import check_path
from jaxmarket.view import animation

__all__ = ["Payment", "Replay", "ReplayEpisode", "ReplaySale", "ReplayStep", "ReplayTraining", "shortened"]

_MOST_AGENTS = 32  # accounts of agents that a page shows one by one
_MOST_BARS = 16  # agents of an animated picture
_MOST_NUMBERS = 256  # of an observation
_MOST_TEXT = 4000  # characters of a state
_LARGEST = 900_000  # characters of the data, if smaller pictures, shorter texts and fewer numbers can achieve it
_TOLERANCE = 1e-4  # of the money that moved or is held: float32 accounts are rounded


@dataclasses.dataclass(frozen=True)
class Payment:
    """One movement of money.

    Attributes:
        kind: ``price``, ``subsidy``, ``reward``, ``rent`` or another name of a cash flow.
        payer, payee: indices of accounts; equal where an owner buys its own state.
        amount: negative amounts flow backwards, such as a negative reward.
    """

    kind: str
    payer: int
    payee: int
    amount: float


@dataclasses.dataclass(frozen=True)
class ReplaySale:
    """One sale of a step: a deep market or society has one per step, a wide market one per good.

    Attributes:
        good: what is sold, such as "state 3".
        bids: f [agents], NaN of agents that do not bid. For goods that are traded at equilibrium prices, the quantities
            that agents buy.
        winner: the account that bought it; None if it was not sold, or to several.
        seller: its owner.
        price: what the winner paid; of a divisible good, per unit.
        action: what the winner then did.
        q: f [agents], Q* of each agent's primitive in this state, where it is known.
        notes: why an agent did not bid, by agent.
        quantities: whether ``bids`` are quantities.
    """

    good: str
    bids: np.ndarray
    winner: int | None
    seller: int
    price: float
    action: str = ""
    q: np.ndarray | None = None
    notes: dict[int, str] = dataclasses.field(default_factory=dict)
    quantities: bool = False


@dataclasses.dataclass(frozen=True)
class ReplayStep:
    """One step: sales, the payments they caused, and the accounts after it.

    Attributes:
        sales: of this step.
        payments: between named accounts.
        wealth: f [accounts], after the step; NaN of accounts without a balance, such as the environment.
        reward: of the step.
        utility: of the winner; NaN if it is not known, or there is not one winner.
        estimated: whether the utility contains a bootstrap value.
        state: the state before the step, as a text.
        picture: u8 [H, W] or [H, W, 3] of that state; None if it cannot be drawn.
        numbers: f [n], its observation.
        charges: f [accounts], what each account paid beside the payments, such as taxes; None for nothing.
        reached, reached_picture: as ``state`` and ``picture``, of the state after the last step of an episode.
        end: "", "terminated", "truncated", or another reason why the episode ended here.
    """

    sales: tuple[ReplaySale, ...]
    payments: tuple[Payment, ...]
    wealth: np.ndarray
    reward: float
    utility: float = math.nan
    estimated: bool = False
    state: str = ""
    picture: np.ndarray | None = None
    numbers: np.ndarray | None = None
    charges: np.ndarray | None = None
    reached: str = ""
    reached_picture: np.ndarray | None = None
    end: str = ""

    def moved(self) -> np.ndarray:
        """The change of every account by the payments and charges of this step, f64 [accounts]."""
        change = np.zeros(len(self.wealth))
        for payment in self.payments:
            change[payment.payer] -= payment.amount
            change[payment.payee] += payment.amount
        return change if self.charges is None else change - self.charges


@dataclasses.dataclass(frozen=True)
class ReplayEpisode:
    """One episode of a market.

    Attributes:
        accounts: names; the agents first, then accounts such as the auctioneer and the environment.
        agents: number of agents among the accounts.
        opening: f [accounts], wealth before the first step, NaN as in `ReplayStep.wealth`.
        steps: at least one.
        seed: of the run, for the choice on the page.
        label: of the episode, such as "episode 1".
        unit: what a step is called on the page.
        groups: i [agents], equal for agents that share a colour, such as the bidders of one primitive; None for none.

    Raises:
        ValueError: there is no step, or payments do not explain a change of wealth.
    """

    accounts: tuple[str, ...]
    agents: int
    opening: np.ndarray
    steps: tuple[ReplayStep, ...]
    seed: str = ""
    label: str = "episode 1"
    unit: str = "auction"
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("steps: expected at least one, got none; record an episode with an auction")
        before, scale = self.opening, 1.0
        for number, step in enumerate(self.steps, 1):
            scale = max(scale, np.nansum(np.abs(step.wealth)), sum(abs(p.amount) for p in step.payments))
            missing = np.abs(step.wealth - before - step.moved())
            if np.nanmax(missing, initial=0.0) > _TOLERANCE * scale or np.isinf(step.wealth).any():
                account = int(np.nanargmax(missing))
                raise ValueError(
                    f"steps: the payments of step {number} do not explain the change of wealth of "
                    f"{self.accounts[account]!r} ({before[account]} to {step.wealth[account]}); record every payment"
                )
            before = step.wealth


@dataclasses.dataclass(frozen=True)
class ReplayTraining:
    """The greedy bids in every state at several moments of training.

    Attributes:
        steps: environment steps of the seed at each moment, [moments].
        bids: f [moments, S, P], the highest greedy bid of each primitive.
        q: f [S, P], Q*.
        visited: bool [S], states visited late in training.
        primitives: names [P].
        seed: of the run.
        note: a sentence on how the moments were recorded.
    """

    steps: np.ndarray
    bids: np.ndarray
    q: np.ndarray
    visited: np.ndarray
    primitives: tuple[str, ...]
    seed: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Replay:
    """Recorded episodes, and the page that shows them. In a notebook it shows itself.

    Attributes:
        title: of the page.
        subtitle: what was trained, and how.
        episodes: the episodes to choose from; those of one seed have the same ``seed``.
        training: replays of training, one per seed.
    """

    title: str
    subtitle: str
    episodes: tuple[ReplayEpisode, ...]
    training: tuple[ReplayTraining, ...] = ()

    @cached_property
    def html(self) -> str:
        """The page."""
        return _page(self)

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, and return its path.

        Raises:
            ValueError: the file cannot be written.
        """
        path = check_path("path", path)
        try:
            path.write_text(self.html, encoding="utf-8", newline="\n")
        except OSError as error:
            raise ValueError(
                f"path: cannot write {path} ({error.strerror}); give a file in an existing folder"
            ) from error
        return path

    def save_gif(self, path: str | Path) -> Path:
        """Write the episodes of the first seed as an animated picture, one frame per sale, and return its path.

        Args:
            path: file name, ``.gif``.

        Raises:
            ValueError: the file has another suffix or cannot be written.
        """
        shown = [shortened(each, _MOST_BARS) for each in self.episodes if each.seed == self.episodes[0].seed]
        animation.save_episodes(path, shown, self.title)
        return Path(path)

    def _repr_html_(self) -> str:
        # The frame has an origin of its own, so that the page and the notebook cannot reach each other.
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" sandbox="allow-scripts" title="{html.escape(self.title)}" '
            'style="width: 100%; height: 860px; border: 0"></iframe>'
        )

    def __repr__(self) -> str:
        steps = sum(len(episode.steps) for episode in self.episodes)
        return f"Replay({self.title!r}, {len(self.episodes)} episodes, {steps} steps)"


# --- the page


def _page(replay: Replay) -> str:
    """The template with the data, and with a policy that permits its own script and no other."""
    template = resources.files("jaxmarket.view").joinpath("replay.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    # A function as replacement, because data may contain backslashes.
    return template.replace("{{script}}", f"sha256-{digest}", 1).replace("{{data}}", _data(replay), 1)


def _data(replay: Replay) -> str:
    """The data as JSON that cannot end its script element: ASCII, and without ``<``."""
    episodes = [shortened(episode, _MOST_AGENTS) for episode in replay.episodes]
    data = ""
    for coarseness in (1, 2, 4, 8):
        shrunk = _Shrunk(coarseness)
        document = {
            "title": _text(replay.title),
            "subtitle": _text(replay.subtitle),
            "episodes": [_episode(episode, shrunk) for episode in episodes],
            "training": [_training(training) for training in replay.training],
            "pictures": list(shrunk.pictures),
        }
        data = json.dumps(document, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        if len(data) <= _LARGEST:
            break
    return data


class _Shrunk:
    """Pictures and texts of states, smaller by a factor if a page would be too large; equal pictures are kept once."""

    def __init__(self, coarseness: int) -> None:
        self._coarseness = coarseness
        self.most_numbers = _MOST_NUMBERS // coarseness
        self.pictures: dict[str, int] = {}

    def picture(self, pixels: np.ndarray) -> int:
        """The place of a picture in the list."""
        every = self._coarseness
        return self.pictures.setdefault(_png(pixels[::every, ::every]), len(self.pictures))

    def text(self, value: str) -> str:
        """A text, cut if it is too long."""
        text, most = _text(value), _MOST_TEXT // self._coarseness
        return text if len(text) <= most else text[: most - 1] + "…"


def _episode(episode: ReplayEpisode, shrunk: _Shrunk) -> dict[str, Any]:
    groups = {} if episode.groups is None else {"groups": [int(group) for group in episode.groups]}
    return groups | {
        "accounts": [_text(name) for name in episode.accounts],
        "agents": episode.agents,
        "opening": _numbers(episode.opening),
        "seed": _text(episode.seed),
        "label": _text(episode.label),
        "unit": _text(episode.unit),
        "steps": [_step(step, episode.agents, shrunk) for step in episode.steps],
    }


def _step(step: ReplayStep, agents: int, shrunk: _Shrunk) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "sales": [_sale(sale) for sale in step.sales],
        "pay": [[_text(p.kind), int(p.payer), int(p.payee), _number(p.amount)] for p in step.payments],
        "wealth": _numbers(step.wealth),
        "reward": _number(step.reward),
        "utility": _number(step.utility),
    }
    if step.estimated:
        entry["estimated"] = 1
    for name in ("state", "reached"):
        if text := shrunk.text(getattr(step, name)):
            entry[name] = text
    if step.reached_picture is not None:
        entry["reachedPicture"] = shrunk.picture(step.reached_picture)
    if step.picture is not None:
        entry["picture"] = shrunk.picture(step.picture)
    elif step.numbers is not None and step.numbers.size <= shrunk.most_numbers:
        entry["numbers"] = _numbers(step.numbers, 3)
    if step.charges is not None and (total := float(step.charges[:agents].sum())):
        entry["charges"] = _number(total)
    if step.end:
        entry["end"] = _text(step.end)
    return entry


def _sale(sale: ReplaySale) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "good": _text(sale.good),
        "bids": _numbers(sale.bids),
        "winner": None if sale.winner is None else int(sale.winner),
        "seller": int(sale.seller),
        "price": _number(sale.price),
    }
    if sale.action:
        entry["action"] = _text(sale.action)
    if sale.q is not None:
        entry["q"] = _numbers(sale.q)
    if sale.notes:
        entry["notes"] = {str(agent): _text(note) for agent, note in sale.notes.items()}
    if sale.quantities:
        entry["quantities"] = 1
    return entry


def _training(training: ReplayTraining) -> dict[str, Any]:
    return {
        "steps": [int(step) for step in training.steps],
        "bids": [[_numbers(row, 4) for row in moment] for moment in training.bids],
        "q": [_numbers(row, 4) for row in training.q],
        "visited": [int(x) for x in training.visited],
        "primitives": [_text(name) for name in training.primitives],
        "seed": _text(training.seed),
        "note": _text(training.note),
    }


def _text(value: str) -> str:
    """A plain string of the page, in Unicode that every JSON parser reads: no unpaired surrogates."""
    return str.__str__(value).encode("utf-8", "replace").decode()


def _number(value: Any, digits: int = 5) -> float | int | None:
    """A number with that many significant digits; None if it is not finite."""
    value = float(value)
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _numbers(values: np.ndarray, digits: int = 5) -> list[float | int | None]:
    return [_number(value, digits) for value in np.asarray(values).reshape(-1)]


def _png(picture: np.ndarray) -> str:
    """A picture as the URL of a PNG of at most 16 grey levels or 64 colours."""
    from PIL import Image  # noqa: PLC0415

    image = Image.fromarray(np.ascontiguousarray(picture, np.uint8))
    grey = picture.ndim == 2
    small = Image.Quantize.MEDIANCUT
    image = image.quantize(16 if grey else 64, method=small, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# --- many agents


def shortened(episode: ReplayEpisode, most: int) -> ReplayEpisode:
    """The episode with its most active agents, and one account for all others, if there are too many.

    Args:
        episode: any.
        most: largest number of agents, with the account for all others.
    """
    if episode.agents <= most:
        return episode
    active, bids = np.zeros(episode.agents), np.full(episode.agents, -np.inf)
    for step in episode.steps:
        for payment in step.payments:
            for account in (payment.payer, payment.payee):
                if account < episode.agents:
                    active[account] += 1
        for sale in step.sales:
            bids = np.fmax(bids, sale.bids)
    kept = np.sort(np.lexsort((-bids, -active))[: most - 1])
    count = episode.agents - len(kept)
    place = np.full(len(episode.accounts), len(kept))
    place[kept] = np.arange(len(kept))
    place[episode.agents :] = len(kept) + 1 + np.arange(len(episode.accounts) - episode.agents)

    def few(values: np.ndarray) -> np.ndarray:
        rest = np.delete(values[: episode.agents], kept)
        return np.concatenate([values[kept], [rest.sum()], values[episode.agents :]])

    def best(values: np.ndarray) -> np.ndarray:
        rest = np.delete(values, kept)
        return np.append(values[kept], np.nan if np.isnan(rest).all() else np.nanmax(rest))

    steps = []
    for step in episode.steps:
        sales = tuple(
            dataclasses.replace(
                sale,
                bids=best(sale.bids),
                q=None if sale.q is None else best(sale.q),
                winner=None if sale.winner is None else int(place[sale.winner]),
                seller=int(place[sale.seller]),
                notes={int(place[agent]): note for agent, note in sale.notes.items() if agent in kept},
            )
            for sale in step.sales
        )
        payments = tuple(
            dataclasses.replace(p, payer=int(place[p.payer]), payee=int(place[p.payee])) for p in step.payments
        )
        charges = None if step.charges is None else few(step.charges)
        steps.append(
            dataclasses.replace(step, sales=sales, payments=payments, wealth=few(step.wealth), charges=charges)
        )
    names = [*(episode.accounts[i] for i in kept), f"{count} other agents", *episode.accounts[episode.agents :]]
    groups = None if episode.groups is None else np.append(episode.groups[kept], -1)
    return dataclasses.replace(
        episode,
        accounts=tuple(names),
        agents=len(kept) + 1,
        opening=few(episode.opening),
        steps=tuple(steps),
        groups=groups,
    )
