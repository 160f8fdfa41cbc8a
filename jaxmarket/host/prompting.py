"""What agents that call a language model have in common: prompts, the bid in a reply, and the count of tokens."""

import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

from jaxmarket.host.calls import Usage
from jaxmarket.host.thoughts import Thought

__all__ = ["ACT_PROMPT", "BID_PROMPT", "Answer", "Meter", "PromptedAgent", "read_bid"]

BID_PROMPT = """You take part in auctions. Whoever bids most pays its bid, does the next step of the work below, and \
is paid for it by whoever buys the work after that, or by the customer when it is done. Bid less than you expect to be \
paid; bid 0 if you cannot help. You own {budget}. Reply with a JSON object and nothing else, such as {"bid": 0.25}."""
"""The system message for a bid. ``{budget}`` is replaced by the agent's budget; other braces are not changed."""

ACT_PROMPT = (
    """You have bought the right to do the next step of the work below. Reply with that step and nothing else."""
)
"""The system message for an act."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A reply of a language model.

    Attributes:
        text: the reply.
        tokens: of the prompt and the reply together.
        seconds: that the model took.
        log_probability: of the reply, where the model offers it.
    """

    text: str
    tokens: int = 0
    seconds: float = 0.0
    log_probability: float | None = None


class Meter:
    """The tokens and seconds that an agent has used so far."""

    def __init__(self) -> None:
        self._lock, self._used = threading.Lock(), Usage()

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        with self._lock:
            self._used = Usage(self._used.tokens + answer.tokens, self._used.seconds + answer.seconds)

    @property
    def used(self) -> Usage:
        """What was counted."""
        return self._used


class PromptedAgent:
    """Bids and acts with one request each to a language model; a subclass sends the request (``_request``)."""

    name: str
    bid_prompt: str
    act_prompt: str
    examples: Sequence[tuple[str, str]]
    render: Callable[[Any], str]
    write: Callable[[Any, str], Any] | None
    _meter: Meter

    @property
    def usage(self) -> Usage:
        """The tokens and seconds of all requests so far, which a market charges (``Market(token_price=…)``)."""
        return self._meter.used

    def bid(self, state: Any, budget: float) -> float | None:
        """Ask the model for a bid.

        Raises:
            ValueError: the reply is not a bid.
        """
        return read_bid(self._ask(self.bid_prompt.replace("{budget}", f"{budget:.6g}"), state, bid=True))

    def act(self, state: Any) -> Any:
        """Ask the model for its action, and return the next state.

        Raises:
            ValueError: the reply is empty, or the state is not a `Thought` and ``write`` is None.
        """
        if self.write is None and not isinstance(state, Thought):
            raise ValueError(
                f"write: expected a function for states of type {type(state).__name__}, got None; or use Thought"
            )
        text = self._ask(self.act_prompt, state, bid=False)
        return state.append(self.name, text) if self.write is None else self.write(state, text)

    def _ask(self, prompt: str, state: Any, bid: bool) -> str:
        answer = self._request(self._messages(prompt, state, () if bid else self.examples), bid)
        self._meter.add(answer)
        if not answer.text.strip():
            raise ValueError(f"reply: expected text, got {answer.text!r}")
        return answer.text.strip()

    def _messages(self, prompt: str, state: Any, examples: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        system = [("system", prompt)] if prompt else []
        shown = [turn for asked, replied in examples for turn in (("user", asked), ("assistant", replied))]
        turns = [*system, *shown, ("user", self.render(state))]
        return [{"role": role, "content": _encodable(text)} for role, text in turns]

    def _request(self, messages: list[dict[str, str]], bid: bool) -> Answer:
        raise NotImplementedError


def read_bid(reply: str) -> float | None:
    """Parse the bid in a reply: a number, or a JSON object whose ``bid`` is a number or null (no bid).

    Raises:
        ValueError: the reply is anything else, such as prose, a code fence, NaN, a quoted number or true.

    >>> read_bid(' {"bid": 0.25, "because": "I can add"} '), read_bid("3e-1"), read_bid('{"bid": null}')
    (0.25, 0.3, None)
    """
    shown = f"{reply[:60]!r}"

    def refuse(constant: str) -> Any:
        raise ValueError(f"reply: expected a finite bid, got {constant} in {shown}")

    try:
        value = json.loads(reply, parse_constant=refuse, parse_int=float)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'reply: expected a number or {{"bid": number}}, got {shown}') from error
    if isinstance(value, dict):
        if "bid" not in value:
            raise ValueError(f'reply: expected a JSON object with "bid", got {shown}')
        value = value["bid"]
        if value is None:
            return None
    if not isinstance(value, float):
        raise ValueError(f'reply: expected a number or {{"bid": number}}, got {shown}')
    return value


def _encodable(text: Any) -> Any:
    """Escape lone surrogates, which other agents' text may contain, and which cannot be encoded as UTF-8."""
    return text.encode(errors="backslashreplace").decode() if isinstance(text, str) else text
