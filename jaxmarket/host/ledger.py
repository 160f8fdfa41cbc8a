"""The ledger: all cash flows of a market by name, in Python floats, with exactly rounded sums."""

import dataclasses
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fractions import Fraction

from jaxmarket.validation import check_float

__all__ = ["AUCTIONEER", "MINT", "WORLD", "Entry", "Ledger", "exact_sum"]

AUCTIONEER = "auctioneer"
"""The account that owns the first state of every episode and receives rent."""

MINT = "mint"
"""The account that pays payout - price to sellers, e.g. under Vickrey; its balance is minus the money created."""

WORLD = "world"
"""The account that pays endowments and rewards, and receives costs; its balance is costs minus the others."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A payment from one account to another.

    Attributes:
        episode, step: the time; both 0 for endowments.
        kind: ``endowment``, ``sale``, ``mint``, ``reward``, ``cost`` or ``rent``.
        payer, payee: agents' names, `AUCTIONEER`, `MINT` or `WORLD`; equal where an owner buys its own state.
        amount: negative amounts flow backwards, such as a negative reward.
    """

    episode: int
    step: int
    kind: str
    payer: str
    payee: str
    amount: float


class Ledger:
    """An append-only list of entries. Each entry names both accounts, so that all balances add up to 0.

    Balances are exact sums, rounded once: ``balance`` equals `math.fsum` of the account's entries bit for bit, and is
    infinite if their sum exceeds the largest float.

    >>> import functools, operator
    >>> ledger = Ledger()
    >>> for _ in range(10):
    ...     ledger.book(Entry(0, 0, "reward", WORLD, "ann", 0.1))
    >>> ledger.balance("ann"), functools.reduce(operator.add, [0.1] * 10)
    (1.0, 0.9999999999999999)
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._exact: defaultdict[str, Fraction] = defaultdict(Fraction)

    def book(self, entry: Entry) -> None:
        """Add an entry.

        Raises:
            ValueError: the amount is not finite.
        """
        amount = Fraction(check_float("amount", entry.amount))
        self._entries.append(entry)
        self._exact[entry.payer] -= amount
        self._exact[entry.payee] += amount

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, account: str) -> list[float]:
        """The signed amounts of the account's entries, without payments to itself; positive amounts are receipts."""
        mine = (e for e in self._entries if (e.payer == account) != (e.payee == account))
        return [e.amount if e.payee == account else -e.amount for e in mine]

    def balance(self, account: str) -> float:
        """The balance of the account: the exact sum of ``ledger.of(account)``, rounded once."""
        return _rounded(self._exact.get(account, Fraction()))

    def budget(self, account: str) -> float:
        """The budget of the account: its balance, rounded down, or 0 if it is negative."""
        exact = self._exact.get(account, Fraction())
        if exact <= 0:
            return 0.0
        rounded = min(_rounded(exact), sys.float_info.max)
        return rounded if Fraction(rounded) <= exact else math.nextafter(rounded, 0.0)

    def total(self, kind: str) -> float:
        """The sum of all entries of a kind."""
        return exact_sum(e.amount for e in self._entries if e.kind == kind)


def exact_sum(amounts: Iterable[float]) -> float:
    """The exact sum of finite numbers, rounded once; infinite if it exceeds the largest float.

    >>> exact_sum([0.1] * 10), exact_sum([1e308] * 5)
    (1.0, inf)
    """
    amounts = list(amounts)
    try:
        return math.fsum(amounts)
    except OverflowError:  # a partial sum may overflow although the total does not
        return _rounded(sum(map(Fraction, amounts), Fraction()))


def _rounded(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf
