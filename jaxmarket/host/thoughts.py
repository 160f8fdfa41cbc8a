"""States that are lists of messages, to which the winner of an auction appends."""

import dataclasses
from collections.abc import Iterator
from typing import Any

__all__ = ["Item", "Thought", "appends"]


@dataclasses.dataclass(frozen=True)
class Item:
    """One step of a chain of thought.

    Attributes:
        author: the agent that appended it.
        content: text, or any object; `appends` accepts only text from agents.
    """

    author: str
    content: Any

    def __str__(self) -> str:
        return f"{self.author}: {self.content}"


@dataclasses.dataclass(frozen=True)
class Thought:
    """A chain of thought: an immutable sequence of items.

    A state of a market may be any object; this one suits agents that exchange text.

    >>> task = Thought().append("user", "2+3*4")
    >>> print(task.append("times", "2+12"))
    user: 2+3*4
    times: 2+12
    >>> len(task), task.last
    (1, '2+3*4')
    """

    items: tuple[Item, ...] = ()

    def append(self, author: str, content: Any) -> "Thought":
        """A new thought with one more item."""
        return Thought((*self.items, Item(author, content)))

    @property
    def last(self) -> Any:
        """The content of the last item; None if there is none."""
        return self.items[-1].content if self.items else None

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __str__(self) -> str:
        return "\n".join(map(str, self.items))


def appends(agent: str, before: Any, after: Any) -> bool:
    """Whether an agent only appended items of text under its own name, for ``Market(legal=appends)``.

    It calls no method of an object from the agent: the `Thought`, its tuple of items, each `Item`, the authors and the
    contents of new items (``str``) must have exactly these types, not subclasses. The contents of the earlier items
    must be the same objects, or equal strings.
    """
    if not (type(before) is Thought and type(after) is Thought and type(after.items) is tuple):
        return False
    count = len(before.items)
    old, new = after.items[:count], after.items[count:]
    kept = len(old) == count and all(map(_same, before.items, old))
    return kept and len(new) > 0 and all(_by(agent, item) and type(_content(item)) is str for item in new)


def _by(author: str, item: Any) -> bool:
    # getattr, because an item can be created without its fields.
    name = getattr(item, "author", None) if type(item) is Item else None
    return type(name) is str and name == author


def _content(item: Item) -> Any:
    return getattr(item, "content", None)


def _same(old: Item, new: Any) -> bool:
    if old is new:
        return True
    if not _by(old.author, new):
        return False
    return _content(new) is old.content or (
        type(_content(new)) is type(old.content) is str and _content(new) == old.content
    )
