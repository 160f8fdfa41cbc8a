"""A message state: what agents have said so far, to which the winner of an auction appends."""

import dataclasses
from collections.abc import Iterator
from typing import Any

__all__ = ["Item", "Thought", "appends"]


@dataclasses.dataclass(frozen=True)
class Item:
    """One step of a chain of thought.

    Attributes:
        author: who says so.
        content: what; text, or any object.
    """

    author: str
    content: Any

    def __str__(self) -> str:
        return f"{self.author}: {self.content}"


@dataclasses.dataclass(frozen=True)
class Thought:
    """A chain of thought: a sequence of items that can only be added to, never changed in place.

    A state of a market may be any object; this one suits agents that talk.

    >>> task = Thought().append("user", "2+3*4")
    >>> print(task.append("times", "2+12"))
    user: 2+3*4
    times: 2+12
    >>> len(task), task.last
    (1, '2+3*4')
    """

    items: tuple[Item, ...] = ()

    def append(self, author: str, content: Any) -> "Thought":
        """A new thought with one item more."""
        return Thought((*self.items, Item(author, content)))

    @property
    def last(self) -> Any:
        """The content of the last item, None without any."""
        return self.items[-1].content if self.items else None

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __str__(self) -> str:
        return "\n".join(map(str, self.items))


def appends(agent: str, before: Any, after: Any) -> bool:
    """Whether an agent only appended items under its own name: for ``Market(legal=appends)``."""
    if not (isinstance(before, Thought) and isinstance(after, Thought)):
        return False
    old, new = after.items[: len(before)], after.items[len(before) :]
    return old == before.items and len(new) > 0 and all(isinstance(i, Item) and i.author == agent for i in new)
