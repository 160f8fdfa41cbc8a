"""Chat models as agents: any endpoint that speaks OpenAI's ``/v1/chat/completions``.

Needs the openai package: ``pip install 'jaxmarket[openai]'``. It is imported when the first `ChatAgent` is made.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from jaxmarket.host.thoughts import Thought

__all__ = ["ACT_PROMPT", "BID_PROMPT", "ChatAgent", "read_bid"]

BID_PROMPT = """You take part in auctions. Whoever bids most pays its bid, does the next step of the work below, and \
is paid for it by whoever buys the work after that, or by the customer when it is done. Bid less than you expect to be \
paid; bid 0 if you cannot help. You own {purse}. Reply with a JSON object and nothing else, such as {"bid": 0.25}."""
"""What a model is told before it bids. ``{purse}`` is replaced by the most it can pay; other braces stay."""

ACT_PROMPT = (
    """You have bought the right to do the next step of the work below. Reply with that step and nothing else."""
)
"""What a model is told before it acts."""


def read_bid(reply: str) -> float | None:
    """The bid in a reply: a number, or a JSON object whose ``bid`` is a number or null (no bid). Nothing else will do.

    Raises:
        ValueError: it is anything else: prose, a code fence, NaN, a bid in quotes, true.

    >>> read_bid(' {"bid": 0.25, "because": "I can add"} '), read_bid("3e-1"), read_bid('{"bid": null}')
    (0.25, 0.3, None)
    """
    shown = f"{reply[:60]!r}"

    def refuse(constant: str) -> Any:
        raise ValueError(f"reply: {constant} is no bid, in {shown}")

    try:
        value = json.loads(reply, parse_constant=refuse, parse_int=float)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'reply: expected a number or {{"bid": number}}, got {shown}') from error
    if isinstance(value, dict):
        if "bid" not in value:
            raise ValueError(f'reply: no "bid" in {shown}')
        value = value["bid"]
        if value is None:
            return None
    if not isinstance(value, float):
        raise ValueError(f'reply: expected a number or {{"bid": number}}, got {shown}')
    return value


@dataclasses.dataclass
class ChatAgent:
    """A chat model as an agent (a `Trader`): it is asked once for a bid, and once more for its step if it wins.

    The state goes to the model as one message of text, after the prompt. Its step is appended to a `Thought`, under its
    name. What goes wrong is raised: a reply that is no bid (see `read_bid`), an empty one, an error of the endpoint
    after all retries. The market then goes on without it and logs the reason.

    Attributes:
        name: its account, and the author of its items.
        model: as the endpoint calls it.
        base_url: of the endpoint, such as ``http://127.0.0.1:8000/v1``; the openai package's own if None.
        api_key: the package reads ``OPENAI_API_KEY`` if None. Not shown in the agent's representation.
        wealth: what it begins with.
        bid_prompt, act_prompt: system messages; ``{purse}`` in the first is replaced.
        render: ``state -> text``.
        write: ``(state, text) -> state``, what becomes of its step; by default ``state.append(name, text)``.
        seconds: time-out of one request. Retries come on top: the market's own time-outs end it all.
        retries: after a failed connection, a time-out, or one of the statuses 408, 409, 429 and 500 to 599.
        options: more of the request: ``temperature``, ``max_tokens``, ``seed``, ``response_format``, …

    Raises:
        ImportError: there is no openai package.
        openai.OpenAIError: there is no key, nor ``OPENAI_API_KEY``.
    """

    name: str
    model: str
    base_url: str | None = None
    api_key: str | None = dataclasses.field(default=None, repr=False)
    wealth: float = 1.0
    bid_prompt: str = BID_PROMPT
    act_prompt: str = ACT_PROMPT
    render: Callable[[Any], str] = str
    write: Callable[[Any, str], Any] | None = None
    seconds: float = 30.0
    retries: int = 2
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            import openai  # noqa: PLC0415  an extra
        except ImportError as error:
            raise ImportError("ChatAgent: needs the openai package; pip install 'jaxmarket[openai]'") from error
        self._client = openai.OpenAI(
            base_url=self.base_url, api_key=self.api_key, timeout=self.seconds, max_retries=self.retries
        )

    def bid(self, state: Any, purse: float) -> float | None:
        """Ask the model for a bid.

        Raises:
            ValueError: the reply is none.
        """
        return read_bid(self._ask(self.bid_prompt.replace("{purse}", f"{purse:.6g}"), state))

    def act(self, state: Any) -> Any:
        """Ask the model for its step: the state after it.

        Raises:
            ValueError: the reply is empty, or the state is no `Thought` and there is no ``write``.
        """
        if self.write is None and not isinstance(state, Thought):
            raise ValueError(f"write: says what becomes of a state that is no Thought but {type(state).__name__}")
        text = self._ask(self.act_prompt, state)
        return state.append(self.name, text) if self.write is None else self.write(state, text)

    def _ask(self, prompt: str, state: Any) -> str:
        messages: Any = [{"role": "system", "content": prompt}, {"role": "user", "content": self.render(state)}]
        completion = self._client.chat.completions.create(model=self.model, messages=messages, **self.options)
        try:
            text = completion.choices[0].message.content
        except (AttributeError, IndexError, TypeError) as error:  # compatible endpoints are not always
            raise ValueError(f"reply: no message in {completion!r:.100}") from error
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"reply: expected text, got {text!r}")
        return text.strip()
