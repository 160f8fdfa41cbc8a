"""Agents that run a language model from a GGUF file, in this process.

They need the xllamacpp package (``pip install 'jaxmarket[lm]'``), which is imported when a `LocalModel` is opened, and
a model file, which the user supplies. `StoredAnswers` keeps a model's answers in a file, and needs neither.
"""

import dataclasses
import hashlib
import importlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from jaxmarket.host.prompting import ACT_PROMPT, BID_PROMPT, Answer, Meter, PromptedAgent
from jaxmarket.validation import check_float, check_int, short_repr

__all__ = ["BID_SCHEMA", "LanguageModel", "LocalAgent", "LocalModel", "StoredAnswers"]

BID_SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "bid",
        "schema": {
            "type": "object",
            "properties": {"bid": {"enum": [round(0.05 * i, 2) for i in range(21)]}},
            "required": ["bid"],
        },
    },
}
"""The ``response_format`` of bids: ``{"bid": x}`` with x one of 0, .05, …, 1."""


class LanguageModel(Protocol):
    """What answers messages: a `LocalModel`, `StoredAnswers`, or an object of the user's."""

    @property
    def identity(self) -> str:
        """What distinguishes the model from others, such as a digest of its file."""
        ...

    def answer(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> Answer:
        """The reply to chat messages. Raises an exception if the model cannot answer."""
        ...


class LocalModel:
    """A model from a GGUF file, in this process, shared by any number of agents.

    The library listens on a random port of the loopback interface, where it answers requests with the key `api_key`
    (``ChatAgent(…, base_url=model.base_url, api_key=model.api_key)``). Python cannot stop an answer, so give every
    request a limit, ``max_tokens``.

    Args:
        path: the GGUF file.
        context: the most tokens of a prompt and its reply; a longer prompt raises.
        threads: of the CPU.
        slots: requests that are answered at once; with more than one, answers depend on what is answered beside them.

    Raises:
        ImportError: the xllamacpp package is not installed.
        ValueError: the file does not exist, or is not a model.
    """

    def __init__(self, path: str | PathLike[str], *, context: int = 2048, threads: int = 1, slots: int = 1) -> None:
        try:
            xllamacpp: Any = importlib.import_module("xllamacpp")  # an extra, without types
        except ImportError as error:
            raise ImportError(
                "LocalModel: the xllamacpp package is not installed; run pip install 'jaxmarket[lm]'"
            ) from error
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"path: expected a GGUF file, got {short_repr(str(path))}; download a model first")
        self.api_key = secrets.token_hex(16)
        slots = check_int("slots", slots)
        params = xllamacpp.CommonParams()
        params.model.path = str(self.path)
        params.n_parallel, params.n_ctx = slots, slots * check_int("context", context)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = check_int("threads", threads)
        params.api_keys, params.warmup, params.verbosity = [self.api_key], False, 0
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:
            raise ValueError(f"path: cannot load {short_repr(str(path))} ({error}); give a GGUF file") from error
        self._identity = ""

    @property
    def base_url(self) -> str:
        """The address of this process's OpenAI-compatible endpoint."""
        return f"{self._server.listening_address}/v1"

    @property
    def identity(self) -> str:
        """The name of the file and a digest of its content."""
        if not self._identity:
            with self.path.open("rb") as file:
                self._identity = f"{self.path.name} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
        return self._identity

    def answer(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> Answer:
        """The reply to chat messages.

        Args:
            messages: with the keys ``role`` and ``content``.
            options: request parameters: ``max_tokens``, ``temperature``, ``seed``, ``cache_prompt``, ``logprobs``,
                ``response_format`` (`BID_SCHEMA`), ``grammar``, ….

        Raises:
            ValueError: the model answers with an error, as to a prompt that is longer than the context.
        """
        start = time.perf_counter()
        found = self._server.handle_chat_completions({"messages": list(messages), **options})
        if "error" in found:
            raise ValueError(f"reply: the model answers {found['error'].get('message', 'with an error')}")
        choice = found["choices"][0]
        chances = [token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or ()]
        return Answer(
            choice["message"].get("content") or "",
            int(found["usage"]["total_tokens"]),
            time.perf_counter() - start,
            sum(chances) if chances else None,
        )


class StoredAnswers:
    """A model whose answers are kept in a file by content: model, messages and options.

    An answer that is in the file comes from there, with the tokens and seconds that it once took; another one is asked
    of the model and appended at once, so that a killed process has lost nothing.

    Args:
        path: the file, one JSON array per line; it need not exist.
        model: what is asked; None to read only.
        identity: of the model whose answers are read; that of ``model`` by default.
        shipped: another file, which is only read.

    Attributes:
        missing: prompts without an answer so far.

    Raises:
        ValueError: neither ``model`` nor ``identity`` is given, or the file contains something else.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        model: LanguageModel | None = None,
        *,
        identity: str | None = None,
        shipped: str | PathLike[str] | None = None,
    ) -> None:
        if model is None and identity is None:
            raise ValueError("identity: expected the name of a model, got None; give the model or its identity")
        self.path, self._model, self._lock = Path(path), model, threading.Lock()
        self.identity = model.identity if model is not None and identity is None else str(identity)
        self.missing = 0
        self._asking: dict[str, threading.Lock] = {}
        self._known = _read(self.path) if shipped is None else {**_read(Path(shipped)), **_read(self.path)}

    def __len__(self) -> int:
        return len(self._known)

    def answer(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> Answer:
        """The stored reply to chat messages, or a new one.

        Raises:
            ValueError: no answer is stored and there is no model to ask, or the model raises it.
        """
        content = json.dumps([self.identity, list(messages), dict(options)], sort_keys=True)
        key = hashlib.sha256(content.encode()).hexdigest()[:16]
        with self._lock:
            asking = self._asking.setdefault(key, threading.Lock())
        with asking:  # agents that ask the same at once wait for one answer
            known = self._known.get(key)
            return self._ask(key, messages, options) if known is None else known

    def _ask(self, key: str, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> Answer:
        if self._model is None:
            self.missing += 1
            raise ValueError(f"answers: {self.path.name} has no answer to this prompt; give the model")
        answer = self._model.answer(messages, options)
        answer = dataclasses.replace(answer, seconds=round(answer.seconds, 3))
        with self._lock:
            self._known[key] = answer
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)  # the last line of a killed process
                file.write(json.dumps([key, *dataclasses.astuple(answer)]).encode() + b"\n")
        return answer


def _read(path: Path) -> dict[str, Answer]:
    lines, known = path.read_text(encoding="utf-8").splitlines() if path.exists() else [], {}
    for number, line in enumerate(lines, 1):
        try:
            key, text, tokens, seconds, chance = json.loads(line)
            known[key] = Answer(str(text), check_int("tokens", tokens, 0), check_float("seconds", seconds), chance)
        except (ValueError, TypeError) as error:
            if number == len(lines):  # of a killed process
                break
            raise ValueError(f"path: line {number} of {path} is not an answer; delete the file") from error
    return known


@dataclasses.dataclass
class LocalAgent(PromptedAgent):
    """A local model under its own prompts as an agent (a `Trader`): one request for a bid, and one for its action.

    It treats states and replies as `jaxmarket.host.openai.ChatAgent` does.

    Attributes:
        name: its account in the ledger, and the author of its items.
        model: what answers.
        wealth: its endowment.
        bid_prompt, act_prompt: system messages, none if empty; ``{budget}`` in the first one is replaced.
        examples: pairs (message, reply) that precede the state in a request to act.
        render: ``state -> text``.
        write: ``(state, text) -> state``, applies the reply; by default ``state.append(name, text)``.
        options: of all requests.
        bid_options: of requests for a bid, in addition; by default the reply is one of the bids of `BID_SCHEMA`.
    """

    name: str
    model: LanguageModel
    wealth: float = 1.0
    bid_prompt: str = BID_PROMPT
    act_prompt: str = ACT_PROMPT
    examples: Sequence[tuple[str, str]] = ()
    render: Callable[[Any], str] = str
    write: Callable[[Any, str], Any] | None = None
    options: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"temperature": 0, "seed": 0, "max_tokens": 64}
    )
    bid_options: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"response_format": BID_SCHEMA, "max_tokens": 16}
    )

    def __post_init__(self) -> None:
        self._meter = Meter()

    def _request(self, messages: list[dict[str, str]], bid: bool) -> Answer:
        return self.model.answer(messages, {**self.options, **(self.bid_options if bid else {})})
