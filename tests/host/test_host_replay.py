"""The replay of a host market, and the log that it is read from."""

import math

import pytest

from jaxmarket.host import CallableAgent, Entry, Market, Thought, json_lines, read_log, replay
from jaxmarket.host.example import arithmetic, solvers


def market(log, **options):
    def reward(state):
        return float(state.last == str(arithmetic(state.items[0].content)))

    made = Market(solvers(), reward=reward, done=lambda state: state.last.isdecimal(), log=log, rent=0.01, **options)
    episodes = [made.play(Thought().append("task", task), steps=20) for task in ("2*(3+4)", "5*(6+2)", "3*(2+2)")]
    return made, episodes


def test_a_log_is_read_as_it_was_written(tmp_path):
    records = []
    with json_lines(tmp_path / "log.jsonl") as lines:
        silent = CallableAgent("</script>\u2028", bid=lambda *_: math.nan, act=lambda state: state)
        made = Market([*solvers(), silent], reward=lambda s: 0.0, log=lambda r: (lines(r), records.append(r)), text=str)
        made.play(Thought().append("task", "2*(3+4)"), steps=3)
    assert str(read_log(tmp_path / "log.jsonl")) == str(records)  # NaN is not equal to itself
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"record": "Bid", "epis')
    assert len(read_log(tmp_path / "log.jsonl")) == len(records)


@pytest.mark.parametrize(
    "line", ["[]", '{"record": "Market"}', '{"record": "StateText", "episode": 1, "step": 1}', "x"]
)
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text('{"record": "StateText", "episode": 1, "step": 1, "text": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match="path: line 2 of"):
        read_log(path)


def test_the_replay_has_the_states_and_the_money_of_the_market(tmp_path):
    records = []
    made, episodes = market(records.append, text=str)
    shown = replay(records)
    assert len(shown.episodes) == len(episodes)
    for found, episode in zip(shown.episodes, episodes, strict=True):
        assert [step.state for step in found.steps] == [str(step.state) for step in episode.steps]
        assert found.steps[-1].reached == str(episode.state)
        assert math.fsum(step.reward for step in found.steps) == episode.reward
        for step, played in zip(found.steps, episode.steps, strict=True):
            amounts = [payment.amount for payment in step.payments]
            assert amounts == [entry.amount for entry in played.entries]
            assert found.accounts[step.sales[0].winner] == played.auction.winner
    last = shown.episodes[-1]
    wealth = dict(zip(last.accounts, last.steps[-1].wealth, strict=True))
    assert {name: wealth[name] for name in made.wealth} == pytest.approx(made.wealth, abs=1e-12)
    assert wealth["auctioneer"] == pytest.approx(made.ledger.balance("auctioneer"), abs=1e-12)
    # Texts of states cannot be shown if they were not logged, and a log without an auction shows nothing.
    records.clear()
    market(records.append)
    assert not replay(records).episodes[0].steps[0].state
    with pytest.raises(ValueError, match="source: the log contains no auction"):
        replay([record for record in records if isinstance(record, Entry)])


def test_two_markets_in_one_log_keep_their_money_apart(tmp_path):
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        with json_lines(path) as log:
            market(log)
    shown = replay(path, episodes=2)
    assert [episode.seed for episode in shown.episodes] == ["market 1"] * 2 + ["market 2"] * 2
    assert list(shown.episodes[0].opening[:4]) == list(shown.episodes[2].opening[:4])
    assert shown.html.count("</script>") == 2


def test_a_state_without_a_text_does_not_stop_the_market():
    records = []

    class Silent:
        def __str__(self):
            raise OSError("no text")

    agent = CallableAgent("ann", bid=lambda *_: 0.5, act=lambda state: state)
    Market([agent], reward=lambda state: 0.0, log=records.append, text=str).play(Silent(), steps=1)
    assert "no text" in replay(records).episodes[0].steps[0].state
