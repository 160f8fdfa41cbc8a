"""The replay page: what it shows is what happened, and data stays data."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from replays import HOSTILE, episode, replay, training

from jaxmarket import deep_market
from jaxmarket.auctions import MECHANISMS
from jaxmarket.deep_market import BidTables, DeepMarket, Terms
from jaxmarket.environments import Chain, SupplyChain, adapt, garnet
from jaxmarket.environments.rooms import PLACES
from jaxmarket.evaluation import trace_episode
from jaxmarket.metrics import ledger
from jaxmarket.policies import BidPolicy, KumaraswamyHead, ValueHead, bid_table, linear
from jaxmarket.settlement import flows, settle
from jaxmarket.society import Society
from jaxmarket.training.wide import WideSociety
from jaxmarket.view import episodes, pictures, rendering
from jaxmarket.view.replay import Replay
from jaxmarket.wide_market import Linear, WideMarket, init, per_agent
from jaxmarket.wide_market.proportional_response import ProportionalResponse


def data_of(made):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', made.html)[1])


# --- the page


def test_texts_of_users_cannot_become_markup():
    made = replay(names=HOSTILE, text=HOSTILE[0])
    document = data_of(made)
    assert document["episodes"][0]["accounts"][:2] == list(HOSTILE[:2])
    assert document["episodes"][0]["steps"][0]["state"] == HOSTILE[0]
    assert document["episodes"][0]["accounts"][2] == HOSTILE[2].replace("\ud800", "?")
    assert [made.html.count(f"<{tag}") for tag in ("script", "/script", "img", "iframe", "b>bold")] == [2, 2, 0, 0, 0]
    assert not set("\u2028\u2029\u202e\x00") & set(made.html)
    frame = made._repr_html_()
    assert frame.count("<") == 2  # the frame and its end
    assert 'sandbox="allow-scripts"' in frame


def test_the_page_needs_no_network_and_permits_its_own_script_only():
    made = replay()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made.html)[1]
    assert policy.startswith("default-src 'none';") and "script-src 'sha256-" in policy
    assert not re.search(r'(src|href)="|@import|url\(|https?://(?!www\.w3\.org)', made.html.split('id="data"')[0])
    script = made.html.split("<script>")[1]
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "fetch(", "import("):
        assert way not in script, way


def test_the_page_shows_what_agents_pay_beside_the_sale():
    made = episode(steps=1)
    step, charges = made.steps[0], np.array([0.25, 0.125, -0.375, 0, 0])  # the third account is the auctioneer's
    taxed = dataclasses.replace(step, charges=charges, wealth=step.wealth - charges)
    document = data_of(Replay("taxes", "", (dataclasses.replace(made, steps=(taxed,)),)))
    assert document["episodes"][0]["steps"][0]["charges"] == 0.375


@pytest.mark.parametrize("agents", [14, 200])
def test_two_hundred_auctions_are_less_than_a_megabyte(agents):
    rng = np.random.default_rng(0)
    noise = lambda t: rng.integers(0, 256, (64, 64), np.uint8)  # noqa: E731  incompressible
    made = Replay("large", "", (episode([f"agent {i}" for i in range(agents)], 200, picture=noise, text="x" * 5000),))
    assert len(made.html) < 1_000_000
    found = data_of(made)["episodes"][0]
    assert len(found["steps"]) == 200 and len(found["accounts"]) <= 35


def test_agents_that_are_not_shown_keep_their_money():
    found = data_of(Replay("many", "", (episode([f"agent {i}" for i in range(100)], 100),)))["episodes"][0]
    assert found["accounts"][found["agents"] - 1] == "69 other agents"
    wealth = np.array(found["opening"], float)
    for step in found["steps"]:
        for _, payer, payee, amount in step["pay"]:
            wealth[payer] -= amount
            wealth[payee] += amount
        np.testing.assert_allclose(np.array(step["wealth"], float), wealth, atol=1e-6)


def test_payments_that_do_not_explain_the_wealth_are_an_error():
    whole = episode()
    wrong = dataclasses.replace(whole.steps[2], payments=whole.steps[2].payments[1:])
    with pytest.raises(ValueError, match="steps: the payments of step 3"):
        dataclasses.replace(whole, steps=(*whole.steps[:2], wrong, *whole.steps[3:]))


def test_save_names_the_file_it_cannot_write(tmp_path):
    assert replay().save(tmp_path / "replay.html").read_text() == replay().html
    with pytest.raises(ValueError, match="path: cannot write"):
        replay().save(tmp_path / "nowhere" / "replay.html")


def test_the_training_has_every_bid():
    found = data_of(replay())["training"][0]
    np.testing.assert_allclose(np.array(found["bids"]), training().bids, atol=1e-4)


# --- societies


@pytest.fixture(scope="module")
def chain():
    env = adapt(Chain())
    society = Society(env, BidPolicy(linear(), KumaraswamyHead()), MECHANISMS["vickrey"])
    params = society.init(jax.random.key(3))
    return society, params


def test_a_society_is_recorded_as_it_was_played(chain):
    society, params = chain
    env_params, key, gamma = society.env.default_params, jax.random.key(1), 0.9
    q = Chain().optimal_q(gamma)
    found = episodes.society_episode(society, params, key, env_params, gamma=gamma, steps=30, q=q)
    rows = trace_episode(society, params, key, env_params, 30)
    assert [step.sales[0].winner for step in found.steps] == rows.outcome.winner.tolist()
    moved = np.zeros((len(found.accounts),) * 2)
    for step in found.steps:
        for payment in step.payments:
            moved[payment.payer, payment.payee] += payment.amount
    assert moved[society.bidders + 1].any()  # Vickrey's subsidy
    np.testing.assert_allclose(moved, ledger(rows), atol=1e-5)
    accounts, utility = jax.device_get(jax.jit(lambda rows: (flows(rows).net, settle(rows, gamma).utility))(rows))
    for step, net in zip(found.steps, accounts, strict=True):
        np.testing.assert_allclose(step.moved()[: society.bidders + 1], net, atol=1e-6)
    np.testing.assert_allclose([step.utility for step in found.steps], utility, atol=1e-6)
    assert found.steps[-1].end and not any(step.end for step in found.steps[:-1])
    for step, obs in zip(found.steps, np.asarray(rows.obs), strict=True):
        state = int(obs.argmax())
        assert step.state == step.sales[0].good == f"state {state}"
        np.testing.assert_allclose(step.sales[0].q, np.repeat(q[state], 2))


def test_the_states_behind_the_rows_are_those_of_the_environment():
    society = Society(adapt(garnet(0, 6, 2, 0.9)), BidPolicy(linear(), KumaraswamyHead()))  # random in every step
    params, env_params = society.init(jax.random.key(3)), society.env.default_params
    rows, _, states, _ = episodes._played(society, jax.random.key(1), params, env_params, 30, 0.9, "bootstrap")
    length = int(rows.done.argmax()) + 1 if rows.done.any() else 30
    np.testing.assert_array_equal(states.index[:length], rows.obs[:length].argmax(1))
    np.testing.assert_array_equal(states.index[length], rows.next_obs[length - 1].argmax())


# --- deep and wide markets


@pytest.mark.slow
def test_a_population_pays_what_its_flows_say():
    env = adapt(Chain())
    market = DeepMarket(env, BidTables(6, 2), capacity=5, instances=2)
    state = deep_market.init(market, jax.random.key(0), env.default_params, num_agents=4, wealth=2.0)
    terms = Terms(rent=0.1, wealth_tax=0.01, exploration=0.5)
    found = episodes.population_episode(
        market, state.population, jax.random.key(1), env.default_params, terms=terms, steps=12
    )
    np.testing.assert_allclose(found.opening[:6], [1, 1, 1, 1, 0, 0])  # an instance has half of everyone's wealth
    taxes = [step.charges[:5].sum() for step in found.steps]
    before = found.opening
    for step, tax in zip(found.steps, taxes, strict=True):
        kinds = {payment.kind for payment in step.payments}
        assert "price" in kinds and tax > 0
        # All wealth that is not rewarded stays with the agents and the auctioneer.
        np.testing.assert_allclose(np.nansum(step.wealth), np.nansum(before) + step.reward, atol=1e-5)
        sale = step.sales[0]
        assert sale.winner == np.nanargmax(sale.bids) or np.isclose(sale.bids[sale.winner], np.nanmax(sale.bids))
        np.testing.assert_allclose(sale.price, sale.bids[sale.winner], rtol=1e-6)
        before = step.wealth
    assert any(payment.kind == "rent" for step in found.steps for payment in step.payments)


@pytest.mark.slow
def test_a_wide_society_sells_every_piece():
    env = adapt(SupplyChain(2, 3, 2, joint=True, horizon=8))
    society = WideSociety(env, BidPolicy(linear(), ValueHead()), clones=1, mechanism=MECHANISMS["ccv"])
    jobs = bid_table(jax.random.uniform(jax.random.key(0), (society.jobs, 3)))
    found = episodes.wide_society_episode(society, jobs, jax.random.key(1), env.default_params)
    assert len(found.steps) == 8 and found.unit == "round"
    values = np.asarray(society.bids(jobs))
    for step in found.steps:
        assert len(step.sales) == 2
        for line, sale in enumerate(step.sales):
            stage = int(re.search(r"stage (\d)", sale.good)[1]) - 1
            mine = np.repeat(np.arange(2) == line, 2)
            np.testing.assert_allclose(sale.bids[mine], values[mine, stage], atol=1e-6)
            assert np.isnan(sale.bids[~mine]).all() and mine[sale.winner]
    total = sum(step.reward for step in found.steps)
    np.testing.assert_allclose(np.nansum(found.steps[-1].wealth), total, atol=1e-4)


@pytest.mark.slow
def test_divisible_goods_are_paid_through_the_market():
    market = WideMarket(
        valuation=lambda agent, world: Linear(agent),
        production=per_agent(lambda agent, bundle: bundle),
        solver=ProportionalResponse(),
    )
    agents = jnp.array([[1.0, 0.2], [0.3, 1.0], [0.5, 0.5]])
    state = init(agents, jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), 5.0)
    found = episodes.wide_episode(market, jax.random.key(0), state, rounds=2, goods=("grain", "iron"))
    first = found.steps[0]
    assert [sale.good for sale in first.sales] == ["grain", "iron"]
    assert first.sales[0].seller == 3 and first.sales[1].seller == 2  # two owners of grain, one of iron
    np.testing.assert_allclose(np.nansum(first.sales[0].bids), 2, rtol=1e-4)
    np.testing.assert_allclose(np.nansum(first.wealth), 15, rtol=1e-5)


# --- pictures


def test_rooms_are_drawn_where_the_agent_is():
    place = next(p for p in PLACES if p.door_open and p.x == 2)
    image = rendering.rooms_image(place, 20)
    assert image.shape == (100, 180, 3)
    dark = (image.sum(-1) < 120).nonzero()
    assert {(int(y) // 20, int(x) // 20) for y, x in zip(*dark, strict=True)} == {(place.y, place.x)}


def test_an_environment_may_draw_itself():
    class Drawn:
        def picture(self, state):
            return np.full((300, 2), state, np.uint8)

    class Wrong:
        def picture(self, state):
            return np.zeros((2, 2))

    adapter = adapt(Chain())
    drawn = pictures.picture(dataclasses.replace(adapter, env=Drawn()), 7, np.zeros(3))
    assert drawn.shape[0] <= 192 and (drawn == 7).all()
    with pytest.raises(ValueError, match="picture: expected u8"):
        pictures.picture(dataclasses.replace(adapter, env=Wrong()), 7, np.zeros(3))


def test_an_observation_of_planes_is_a_picture():
    planes = np.zeros((4, 5, 6))
    planes[1, 2, 3] = 1
    assert pictures.image_of(planes).shape == (64, 80, 3)
    assert pictures.image_of(np.zeros(4)) is None
