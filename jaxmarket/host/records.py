"""Records of a market's log: one for every bid, call, payment (`Entry`) and auction."""

import dataclasses
import json
import math
import os
from os import PathLike
from types import TracebackType
from typing import Any, Self, TextIO

from jaxmarket.host.ledger import Entry

__all__ = ["Auction", "Bid", "Call", "JsonLines", "Record", "json_lines"]


@dataclasses.dataclass(frozen=True)
class Bid:
    """The bid of an agent in an auction, and the reason if it was ignored.

    Attributes:
        episode, step: which auction, from 1.
        agent: its name.
        bid: the number that it returned, or None.
        offer: the bid, at most its budget; None if it was not eligible.
        reason: empty for an eligible bid. Else ``silent`` (it bid None), ``late``, ``busy`` with an earlier call,
            ``bankrupt``, ``not finite``, ``negative``, ``not a number: …`` or the exception it raised.
        seconds: until it answered, or until the time limit.
    """

    episode: int
    step: int
    agent: str
    bid: float | None
    offer: float | None
    reason: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of an agent's ``act`` or ``learn``.

    Attributes:
        episode, step: in which auction, from 1.
        agent: its name.
        what: ``act`` or ``learn``.
        reason: empty on success. Else ``late``, ``busy`` with an earlier call, ``returned nothing``,
            ``not legal`` or the exception it raised. The sale to an agent that failed to act is void.
        seconds: as for a `Bid`.
    """

    episode: int
    step: int
    agent: str
    what: str
    reason: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Auction:
    """The result of an auction, as the buyer and the seller receive it. The other bids stay sealed.

    Attributes:
        episode, step: which auction, from 1.
        winner: the agent that bought the state and acted; without one (None) no money moved.
        seller: the owner of the state.
        price: what the winner paid.
        payout: what the seller received; ``payout - price`` is minted.
        reward: what the winner was paid for the state it reached.
        rent: what the winner paid to the auctioneer after that.
        done: whether the episode ended; the state reached is not sold then.
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


Record = Bid | Call | Entry | Auction


class JsonLines:
    """A log that writes one JSON object per record and line, ``record`` naming its class. See `json_lines`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, record: Record) -> None:
        """Write a record; it is on its way to the disk when this returns."""
        fields = {name: _plain(value) for name, value in dataclasses.asdict(record).items()}
        line = json.dumps({"record": type(record).__name__, **fields}, ensure_ascii=False, allow_nan=False)
        if not line.isprintable():  # C1 codes, bidirectional overrides and line separators, which JSON permits
            line = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
        self._file.write(line + "\n")
        self._file.flush()  # the log of a run that is killed says what happened until then

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _plain(value: Any) -> Any:
    # JSON has no NaN and no infinity, which agents do bid.
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
