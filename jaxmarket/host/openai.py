"""Agents that call a chat model through any endpoint with OpenAI's ``/v1/chat/completions`` interface.

They need the openai package (``pip install 'jaxmarket[openai]'``), which is imported when a `ChatAgent` is created.
"""

import base64
import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from jaxmarket.host.prompting import ACT_PROMPT, BID_PROMPT, Answer, Meter, PromptedAgent, read_bid

__all__ = ["ACT_PROMPT", "BID_PROMPT", "ChatAgent", "read_bid"]

_HIDDEN = "***"
_MIN_SECRET = 4  # characters; local servers accept any key, and a key such as "-" occurs in every text


@dataclasses.dataclass
class ChatAgent(PromptedAgent):
    """A chat model as an agent (a `Trader`): one request for a bid, and one for its action if it wins.

    The state is sent to the model as one message of text, after the prompt. The reply is appended to a `Thought` under
    the agent's name. Failures raise exceptions: a reply that is not a bid (see `read_bid`), an empty reply, or an error
    of the endpoint after all retries. The market handles them as failures of the agent and logs the reason.

    Attributes:
        name: its account in the ledger, and the author of its items.
        model: name of the model at the endpoint.
        base_url: URL of the endpoint, such as ``http://127.0.0.1:8000/v1``; the openai package's default if None. User
            and password in it are sent, but not stored in this attribute.
        api_key: the key; the package reads ``OPENAI_API_KEY`` if None. It is stored only in the package's client.
        wealth: its endowment.
        bid_prompt, act_prompt: system messages; ``{budget}`` in the first one is replaced.
        render: ``state -> text``.
        write: ``(state, text) -> state``, applies the reply; by default ``state.append(name, text)``.
        seconds: time-out of one request, without retries; the market's time limits apply to all requests together.
        retries: number of retries after a failed connection, a time-out, or the status 408, 409, 429 or 500 to 599.
        options: further request parameters: ``temperature``, ``max_tokens``, ``seed``, ``response_format``, … The
            values of ``extra_headers`` and ``extra_query`` are sent, but not stored in this attribute.
        examples: pairs (message, reply) that precede the state in a request to act.

    The key, the password and these values are secrets: ``***`` replaces them in replies and errors. Requests,
    responses, traces and causes of errors are removed.

    Raises:
        ImportError: the openai package is not installed.
        ValueError: ``base_url`` is not a valid URL of an endpoint.
        openai.OpenAIError: neither ``api_key`` nor ``OPENAI_API_KEY`` is set.
    """

    name: str
    model: str
    base_url: str | None = None
    api_key: dataclasses.InitVar[str | None] = None
    wealth: float = 1.0
    bid_prompt: str = BID_PROMPT
    act_prompt: str = ACT_PROMPT
    render: Callable[[Any], str] = str
    write: Callable[[Any, str], Any] | None = None
    seconds: float = 30.0
    retries: int = 2
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    examples: Sequence[tuple[str, str]] = ()

    def __post_init__(self, api_key: str | None) -> None:
        try:
            import openai  # noqa: PLC0415  an extra
        except ImportError as error:
            raise ImportError(
                "ChatAgent: the openai package is not installed; run pip install 'jaxmarket[openai]'"
            ) from error
        url, login = _split_login(self.base_url or os.environ.get("OPENAI_BASE_URL") or None)
        if self.base_url is not None:
            self.base_url = url
        private = {name: dict(self.options.get(name) or {}) for name in ("extra_headers", "extra_query")}
        self.options = {**self.options, **{name: dict.fromkeys(v, _HIDDEN) for name, v in private.items() if v}}
        self._client = openai.OpenAI(
            base_url=url,
            api_key=api_key,
            timeout=self.seconds,
            max_retries=self.retries,
            default_headers=None if login is None else {"Authorization": f"Basic {login[-1]}"},
        )
        self._secrets, self._meter = _Secrets(self._client, private, login or ()), Meter()

    def _request(self, messages: Any, bid: bool) -> Answer:
        del bid
        secrets, start = self._secrets, time.perf_counter()
        completion, failure = None, None
        try:
            options = {**self.options, **secrets.options}
            completion = self._client.chat.completions.create(model=self.model, messages=messages, **options)
        except Exception as error:
            failure = secrets.purge(error)
        if failure is not None:  # raised outside of the handler, which would attach the original error as its context
            raise failure
        try:
            text = completion.choices[0].message.content  # type: ignore[union-attr]
        except (AttributeError, IndexError, TypeError):  # the endpoint returned an incompatible object
            raise ValueError(f"reply: expected a message, got {secrets.hide(repr(completion))[:100]}") from None
        if not isinstance(text, str):
            raise ValueError(f"reply: expected text, got {text!r}")
        tokens = getattr(getattr(completion, "usage", None), "total_tokens", None)
        return Answer(secrets.hide(text), tokens if isinstance(tokens, int) else 0, time.perf_counter() - start)


class _Secrets:
    """The secrets to remove from texts: the key, user and password, and values of headers and queries."""

    def __init__(self, client: Any, options: Mapping[str, Mapping[str, Any]], login: Sequence[str]) -> None:
        self._client = client  # stores the key, which may change
        self.options = {name: values for name, values in options.items() if values}
        self._texts = [*login, *(str(value) for values in options.values() for value in values.values())]

    def hide(self, text: str) -> str:
        """The text without secrets, including their JSON, repr and URL encodings."""
        for secret in sorted({str(self._client.api_key), *self._texts}, key=len, reverse=True):
            if len(secret) >= _MIN_SECRET:
                for written in {secret, json.dumps(secret)[1:-1], quote(secret, safe="")}:
                    # Repeated encoding, as in JSON within JSON, adds backslashes before characters.
                    text = re.sub(
                        "".join(r"\\+" if c == "\\" else r"\\*" + re.escape(c) for c in written), _HIDDEN, text
                    )
        return text

    def purge(self, error: Exception) -> Exception:
        """The error without secrets in its texts, and without its request, response, traceback and causes."""
        error.args = self._purged(error.args)
        vars(error).update(self._purged(vars(error)))
        vars(error).update({name: None for name in ("request", "response") if name in vars(error)})
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)

    def _purged(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list | tuple):
            return (list if isinstance(value, list) else tuple)(map(self._purged, value))
        if isinstance(value, dict):
            return {self._purged(name): self._purged(entry) for name, entry in value.items()}
        return value


def _split_login(url: str | None) -> tuple[str | None, list[str] | None]:
    """Split a URL into the URL without credentials, and [user, password, HTTP Basic credentials] or None."""
    if url is None:
        return None, None
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if the port is invalid
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError
    except (ValueError, AttributeError, TypeError):
        raise ValueError(
            "base_url: expected the URL of an endpoint, such as http://127.0.0.1:8000/v1, without ? and #, got another "
            "value (not shown, because it may contain a password); escape special characters of a password as %XX, and "
            "give a query as options={'extra_query': {...}}"
        ) from None
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = map(unquote, login.partition(":"))
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    return parts._replace(netloc=host).geturl(), [user, password, basic]
