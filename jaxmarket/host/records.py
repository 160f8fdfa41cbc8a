"""Records of a market (states, bids, calls, payments, auctions), and a log of them in JSON lines."""

import dataclasses
import json
import math
import os
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from jaxmarket.host.ledger import Entry
from jaxmarket.validation import check_float, check_int, short_repr

__all__ = ["Auction", "Bid", "Call", "JsonLines", "Record", "StateText", "json_lines", "read_log"]


@dataclasses.dataclass(frozen=True)
class Bid:
    """The bid of an agent in an auction, and the reason if it was ignored.

    Attributes:
        episode, step: number of the episode and of the auction in it, from 1.
        agent: name of the agent.
        bid: the number that the agent returned, or None.
        offer: the bid, limited by the budget; None if the agent was not eligible.
        reason: empty for an eligible bid. Otherwise ``silent`` (the agent bid None), ``late``, ``busy`` (an earlier
            call is still running), ``bankrupt``, ``not finite``, ``negative``, ``not a number: …`` or the exception.
        seconds: time until the answer, or the time limit.
        tokens: that the call used, by the agent's own count; 0 if it failed.
    """

    episode: int
    step: int
    agent: str
    bid: float | None
    offer: float | None
    reason: str
    seconds: float
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of an agent's ``act`` or ``learn``.

    Attributes:
        episode, step: number of the episode and of the auction in it, from 1.
        agent: name of the agent.
        what: ``act`` or ``learn``.
        reason: empty on success. Otherwise ``late``, ``busy`` (an earlier call is still running), ``returned nothing``,
            ``not legal`` or the exception. The sale to an agent that failed to act is void.
        seconds, tokens: as for a `Bid`.
    """

    episode: int
    step: int
    agent: str
    what: str
    reason: str
    seconds: float
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Auction:
    """The result of an auction, which the buyer and the seller receive. It does not contain the sealed bids of others.

    Attributes:
        episode, step: number of the episode and of the auction in it, from 1.
        winner: the agent that bought the state and acted; None if no agent did, and then nothing but costs was paid.
        seller: the owner of the state.
        price: the amount that the winner paid.
        payout: the amount that the seller received; ``payout - price`` is minted.
        reward: the winner's reward for the next state.
        rent: the amount that the winner paid to the auctioneer.
        done: whether the episode ended; then the next state is not sold.
        cost: the amount that the winner paid for the tokens and seconds of its bid and its action.
    """

    episode: int
    step: int
    winner: str | None
    seller: str
    price: float
    payout: float
    reward: float
    rent: float
    done: bool
    cost: float = 0.0


@dataclasses.dataclass(frozen=True)
class StateText:
    """A state as a text, where the market has a function ``text`` for it.

    Attributes:
        episode, step: number of the episode, and of the auction that sells the state. The last state of an episode has
            the number of an auction that is never held.
        text: the text.
    """

    episode: int
    step: int
    text: str


Record = StateText | Bid | Call | Entry | Auction


class JsonLines:
    """A log that writes one JSON object per record and line, ``record`` naming its class. See `json_lines`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, record: Record) -> None:
        """Write a record and flush the file."""
        fields = {name: _plain(value) for name, value in dataclasses.asdict(record).items()}
        line = json.dumps({"record": type(record).__name__, **fields}, ensure_ascii=False, allow_nan=False)
        if not line.isprintable():  # C1 codes, bidirectional overrides and line separators, which JSON permits
            line = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
        self._file.write(line + "\n")
        self._file.flush()  # so that the log of a killed process is complete

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _plain(value: Any) -> Any:
    # JSON has no NaN and no infinity, which agents may bid.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def json_lines(path: str | PathLike[str]) -> JsonLines:
    """A log for ``Market(log=…)`` that appends to a file, as UTF-8; a NaN or infinite bid is written as a string.

    Characters that a terminal would interpret or hide become JSON escapes. If a killed process left an incomplete last
    line, the next record begins on a new line.

    Raises:
        OSError: the file cannot be opened.
    """
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by JsonLines
    if os.path.isfile(path) and file.tell():
        with open(path, "rb") as written:
            written.seek(-1, os.SEEK_END)
            if written.read() != b"\n":
                file.write("\n")
    return JsonLines(file)


_KINDS: dict[str, type[Record]] = {kind.__name__: kind for kind in (StateText, Bid, Call, Entry, Auction)}
_PARSED: dict[Any, Any] = {
    "int": lambda value: check_int("number", value, 0),
    "float": lambda value: check_float("number", value),
    "str": lambda value: _typed(value, str),
    "bool": lambda value: _typed(value, bool),
}


def read_log(path: str | PathLike[str]) -> list[Record]:
    """The records of a log that `json_lines` wrote. An incomplete last line, of a killed process, is left out.

    Raises:
        ValueError: the file cannot be read, or a line is not a record.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"path: cannot read {path} ({error.strerror}); give a log of json_lines") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(_record(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if number == len(lines):  # without a line break, so it was never completed
                break
            raise ValueError(
                f"path: line {number} of {path} is not a record ({short_repr(str(error))}); give a log of json_lines"
            ) from error
    return records


def _record(entry: Any) -> Record:
    kind = _KINDS[entry.pop("record")]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if not needed <= set(entry) <= set(fields):
        raise ValueError(f"{kind.__name__} has other fields")
    values = {}
    for field in (fields[name] for name in entry):
        value, (name, *optional) = entry[field.name], str(getattr(field.type, "__name__", field.type)).split(" | ")
        if field.name == "bid":  # any number or none; those that JSON lacks are strings
            value = None if value is None else float(value)
        elif value is not None or not optional:
            value = _PARSED[name](value)
        values[field.name] = value
    return kind(**values)


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected {kind.__name__}, got {short_repr(value)}")
    return value
