"""Two Rooms compared with MiniGrid; rewards by hand, optimal returns by search, and pictures."""

import collections
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Door, Goal
from minigrid.minigrid_env import MiniGridEnv
from PIL import Image, ImageSequence

from jaxmarket import make
from jaxmarket.environments import Option, Options, TwoRooms, adapt
from jaxmarket.environments.rooms import ACTIONS, PLACES, TASKS, Place, Task, step_rule, view
from jaxmarket.testing import check_environment
from jaxmarket.view import plotting, rendering
from jaxmarket.view.rendering import draw_rooms, draw_trajectory, episode, save_gif, save_png, seen_cells

KEY = jax.random.key(0)
LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(7)


# --- MiniGrid


class Reference(MiniGridEnv):
    """The same rooms, built from MiniGrid's parts."""

    def __init__(self):
        mission = MissionSpace(mission_func=lambda: "")
        super().__init__(mission, width=9, height=5, max_steps=10**9, see_through_walls=False, agent_view_size=7)
        self.reset(seed=0)

    def _gen_grid(self, width, height):
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.grid.vert_wall(4, 0)
        self.door = Door("red")
        self.grid.set(4, 2, self.door)
        # A goal pays and ends the episode when it is walked upon. In Two Rooms only `done` does, so neither is looked
        # at below, and both go on stepping.
        for y, colour in ((1, "blue"), (3, "green")):
            goal = Goal()
            goal.color = colour
            self.grid.set(7, y, goal)
        self.agent_pos, self.agent_dir = (1, 1), 0

    @property
    def place(self):
        x, y = (int(v) for v in self.agent_pos)
        return Place(x, y, int(self.agent_dir), self.door.is_open)

    @place.setter
    def place(self, place):
        self.agent_pos, self.agent_dir, self.door.is_open = (place.x, place.y), place.direction, place.door_open


@pytest.fixture(scope="module")
def reference():
    return Reference()


def test_every_place_and_action_against_minigrid(reference):
    env = TwoRooms()
    params = jax.device_get(env.default_params)
    assert len(PLACES) == len(set(PLACES)) == 148
    cells = {(x, y) for x in (1, 2, 3, 5, 6, 7) for y in (1, 2, 3)} | {(4, 2)}
    everywhere = {Place(*xy, d, is_open) for xy in cells for d in range(4) for is_open in (False, True)}
    assert set(PLACES) == {place for place in everywhere if place.door_open or place[:2] != (4, 2)}
    for i, place in enumerate(PLACES):
        reference.place = place
        image = reference.gen_obs()["image"]
        assert image.dtype == view(place).dtype == np.uint8
        np.testing.assert_array_equal(view(place), image, str(place))
        np.testing.assert_array_equal(params.views[i], image)
        for action in range(7):
            reference.place = place
            reference.step(action)
            assert step_rule(place, action) == reference.place, (place, ACTIONS[action])
            assert PLACES[params.successors[i, action]] == reference.place
    assert [a.name for a in reference.actions] == list(ACTIONS)


def random_action(rng, place):
    """Random actions, mostly forward, with enough toggles that both rooms are visited."""
    if place.ahead == (4, 2) and rng.random() < 0.4:
        return TOGGLE
    return int(rng.choice(7, p=[0.18, 0.18, 0.4, 0.06, 0.06, 0.06, 0.06]))


@pytest.mark.slow
def test_long_walks_against_minigrid(reference):
    env = adapt(TwoRooms())
    params = env.default_params
    step = jax.jit(
        lambda state, action: env.raw_step(KEY, state, action, params)
    )  # does not reset, so walks can be long
    visited, taken, toggled, crossed = set(), set(), 0, 0
    for seed in range(16):
        rng = np.random.default_rng(seed)
        place = PLACES[rng.integers(len(PLACES))]
        reference.place = place
        state = env.env.state_at(place)
        np.testing.assert_array_equal(env.env.get_obs(state), reference.gen_obs()["image"])
        for _ in range(400):
            before, action = place, random_action(rng, place)
            theirs, *_ = reference.step(action)
            ours = step(state, action)
            state = ours.env_state
            place = env.env.place_of(state)
            assert place[:2] == tuple(reference.agent_pos)
            assert place.direction == reference.agent_dir == theirs["direction"]
            assert place.door_open == reference.door.is_open
            np.testing.assert_array_equal(ours.obs, theirs["image"])
            visited.add(place)
            taken.add(action)
            toggled += place.door_open != before.door_open
            crossed += before.x == 4 and place.x != 4
    assert taken == set(range(7))
    assert {place[:2] for place in visited} == {place[:2] for place in PLACES}, "the doorway and both goals included"
    assert len(visited) > 130 and toggled > 50 and crossed > 20


# --- rewards and ends


def walk(place, actions):
    places = [place]
    for action in actions:
        places.append(step_rule(places[-1], action))
    return places


def run(env, place, actions, time=0):
    """Steps from a place on, without resets."""
    adapter = adapt(env)
    params = adapter.default_params

    def body(state, action):
        after = adapter.raw_step(KEY, state, action, params)
        return after.env_state, after

    return jax.lax.scan(body, env.state_at(place, time), jnp.asarray(actions))[1]


ACHIEVED = {
    "TwoRooms-Red-v0": lambda p: p.door_open and p.x >= 5,
    "TwoRooms-Green-v0": lambda p: p[:2] == (7, 3),
    "TwoRooms-Blue-v0": lambda p: p[:2] == (7, 1),
    "TwoRooms-GreenTask-v0": lambda p: p[:2] == (7, 3),
    "TwoRooms-BlueTask-v0": lambda p: p[:2] == (7, 1),
}
FROM_THE_LEFT = ("TwoRooms-Red-v0", "TwoRooms-GreenTask-v0", "TwoRooms-BlueTask-v0")


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_asks_for(task):
    """In each of the 148 states: `done` pays and terminates in goal states only, and no other action does."""
    env = TwoRooms(task)
    params = env.default_params
    states = jax.vmap(lambda i: env.state_at(PLACES[0]).replace(index=i))(jnp.arange(148))
    step = jax.jit(jax.vmap(jax.vmap(env.step_env, (None, None, 0, None)), (None, 0, None, None)))
    obs, after, reward, terminated, _ = step(KEY, states, jnp.arange(7), params)
    expected = np.zeros((148, 7), bool)
    expected[:, DONE] = [ACHIEVED[task](place) for place in PLACES]
    np.testing.assert_array_equal(terminated, expected)
    np.testing.assert_allclose(reward, np.where(expected, 1 - 0.9 / 50, 0), rtol=1e-6)
    np.testing.assert_array_equal(after.time, 1)
    np.testing.assert_array_equal(after.index[:, DONE], np.arange(148))
    assert obs.shape == (148, 7, 7, 7, 3) and obs.dtype == jnp.uint8


@pytest.mark.parametrize("task", TASKS)
def test_where_a_task_starts(task):
    env, params = make(task)
    xs = (1, 2, 3) if task in FROM_THE_LEFT else (5, 6, 7)
    expected = {Place(x, y, direction) for x in xs for y in (1, 2, 3) for direction in range(4)}
    n = 3600
    obs, states = jax.jit(jax.vmap(env.reset_env, (0, None)))(jax.random.split(KEY, n), params)
    assert not states.time.any()
    counts = collections.Counter(PLACES[i] for i in states.index.tolist())
    assert set(counts) == expected
    # Hoeffding and a union bound: a fair draw fails with probability 1e-6, one that doubles a place always does.
    assert max(abs(count / n - 1 / 36) for count in counts.values()) < np.sqrt(np.log(2 * 36 / 1e-6) / (2 * n))
    np.testing.assert_array_equal(obs[0], view(PLACES[int(states.index[0])]))


def test_rewards_by_hand():
    """Nine steps to the green tile and `done` as the tenth: 1 - .9 × 10/50."""
    env = TwoRooms("TwoRooms-GreenTask-v0")
    actions = [TOGGLE, FORWARD, FORWARD, FORWARD, RIGHT, FORWARD, LEFT, FORWARD, FORWARD, DONE]
    rows = run(env, Place(3, 2, 0), actions)
    assert walk(Place(3, 2, 0), actions)[-1] == Place(7, 3, 0, True)
    np.testing.assert_allclose(rows.reward, [0] * 9 + [0.82], rtol=1e-6)
    np.testing.assert_array_equal(rows.terminated, [False] * 9 + [True])
    assert not rows.truncated.any() and (rows.duration == 1).all()
    # In the wrong places `done` only lets time pass: beside the tile, and on the other one.
    wrong = [DONE, RIGHT, RIGHT, DONE, LEFT, LEFT, FORWARD, DONE]
    rows = run(env, Place(6, 3, 0, True), wrong)
    np.testing.assert_array_equal(rows.terminated, [False] * 7 + [True])
    np.testing.assert_allclose(rows.reward, [0] * 7 + [1 - 0.9 * 8 / 50], rtol=1e-6)
    rows = run(env, Place(7, 1, 0, True), [DONE] * 3)
    assert not rows.terminated.any() and not rows.reward.any()
    assert rows.env_state.time.tolist() == [1, 2, 3]


def test_an_episode_ends_after_fifty_steps_and_not_before():
    env = TwoRooms("TwoRooms-Red-v0")
    rows = run(env, Place(1, 1, 0), [LEFT] * 51)
    np.testing.assert_array_equal(rows.truncated, [False] * 49 + [True] * 2)
    assert not rows.terminated.any() and not rows.reward.any()
    rows = run(env, Place(5, 2, 0, True), [LEFT] * 49 + [DONE])
    np.testing.assert_array_equal(rows.terminated, [False] * 49 + [True])
    np.testing.assert_allclose(rows.reward, [0] * 49 + [0.1], rtol=1e-5)
    # Success on the last step is success: both flags are set, and `terminated` wins wherever it matters.
    np.testing.assert_array_equal(rows.truncated, [False] * 49 + [True])
    early = run(env, Place(5, 2, 0, True), [DONE], time=48)
    assert early.terminated.all() and not early.truncated.any()
    np.testing.assert_allclose(early.reward, 1 - 0.9 * 49 / 50, rtol=1e-6)


def test_another_limit():
    env = TwoRooms("TwoRooms-Blue-v0")
    params = env.default_params.replace(max_steps_in_episode=10)
    state = env.state_at(Place(7, 1, 0), time=8)
    _, state, reward, terminated, truncated, _ = env.step(KEY, state, DONE, params)
    assert terminated and not truncated
    np.testing.assert_allclose(reward, 1 - 0.9 * 9 / 10, rtol=1e-5)


def search(task):
    """Mean best return: breadth-first from every start, in MiniGrid's own terms."""
    returns = []
    xs = (1, 2, 3) if task in FROM_THE_LEFT else (5, 6, 7)
    reference = Reference()
    moves = {}
    for place, action in itertools.product(PLACES, (LEFT, RIGHT, FORWARD, TOGGLE)):
        reference.place = place
        reference.step(action)
        moves[place, action] = reference.place
    for x, y, direction in itertools.product(xs, (1, 2, 3), range(4)):
        start = Place(x, y, direction)
        distance, queue = {start: 0}, collections.deque([start])
        while queue:
            place = queue.popleft()
            if ACHIEVED[task](place):
                returns.append(1 - 0.9 * (distance[place] + 1) / 50)
                break
            for action in (LEFT, RIGHT, FORWARD, TOGGLE):
                after = moves[place, action]
                if after not in distance:
                    distance[after] = distance[place] + 1
                    queue.append(after)
    assert len(returns) == 36
    return np.mean(returns)


@pytest.mark.parametrize("task", TASKS)
def test_optimal_return_is_that_of_a_search(task):
    env = TwoRooms(task)
    np.testing.assert_allclose(env.optimal_return(), search(task), rtol=1e-12)
    assert env.optimal_return(0.5) == env.optimal_return() == adapt(env).optimal_return()


# --- the contract of an environment


def test_instances_compare_by_value():
    for task in TASKS:
        assert TwoRooms(task) == TwoRooms(task) and hash(TwoRooms(task)) == hash(TwoRooms(task))
        assert make(task)[0] is make(task)[0]
        assert make(task)[0] == TwoRooms(task) and TwoRooms(task).name == task
    assert len({TwoRooms(task) for task in TASKS}) == 5
    own = Task("green", "left")
    assert TwoRooms(own) == TwoRooms(Task("green", "left")) != TwoRooms(Task("blue", "left"))
    assert TwoRooms(own).name == "TwoRooms-green-from-left"
    assert TwoRooms() != "TwoRooms-GreenTask-v0"


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="task: unknown task 'TwoRooms-Pink-v0'; choose from TwoRooms-Red-v0"):
        TwoRooms("TwoRooms-Pink-v0")
    for place in (Place(4, 2, 0, False), Place(0, 0, 0), Place(4, 1, 0, True), Place(1, 1, 4), Place(8, 2, 0)):
        with pytest.raises(ValueError, match=r"^place:"):
            TwoRooms().state_at(place)


def test_places_and_states_are_one_to_one():
    env = TwoRooms()
    for place in PLACES:
        state = env.state_at(place, 7)
        assert env.place_of(state) == place and int(state.time) == 7


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_contract(task):
    check_environment(TwoRooms(task))


# --- playing episodes


def scripted(*moves):
    """A policy by look-up: the first of ``(place, action)`` whose view this is; else it is done."""
    views = jnp.stack([jnp.asarray(view(place)) for place, _ in moves])
    actions = jnp.asarray([action for _, action in moves] + [DONE])

    def policy(obs, key):
        del key
        same = (views == obs).all((1, 2, 3))
        return actions[jnp.where(same.any(), same.argmax(), len(moves))]

    return policy


def wandering(obs, key):
    """Uniform over all actions but `done`."""
    del obs
    return jax.random.randint(key, (), 0, DONE)


START = Place(2, 2, 0)
APPROACH = scripted((START, FORWARD), (Place(3, 2, 0), TOGGLE))
THROUGH = scripted(
    *((Place(x, 2, 0, True), FORWARD) for x in (3, 4, 5, 6)),
    (Place(7, 2, 0, True), RIGHT),
    (Place(7, 2, 1, True), FORWARD),
)
BEST = [FORWARD, TOGGLE, *[FORWARD] * 4, RIGHT, FORWARD, DONE]


def test_an_episode_step_by_step():
    script = iter(BEST)
    played = episode(TwoRooms(), lambda obs, key: next(script), KEY, start=START)
    assert played.actions == played.choices == played.decisions == BEST
    assert played.places == walk(START, BEST)
    assert played.decided == [True] * 9
    assert played.labels == [*(ACTIONS[action] for action in BEST), "reward 0.84"]
    assert played.reward == pytest.approx(1 - 0.9 * 9 / 50)


def test_an_episode_is_what_the_policy_sees_and_does():
    seen = []

    def policy(obs, key):
        seen.append(np.asarray(obs))
        return jax.random.randint(key, (), 0, DONE)

    played = episode(adapt(TwoRooms()), policy, KEY)
    assert played.reward == 0 and len(played.actions) == 50 and played.labels[-1] == "reward 0.00"
    assert played.places == walk(played.places[0], played.actions)
    np.testing.assert_array_equal(seen, [view(place) for place in played.places[:-1]])
    assert played.places[0].x < 4 and not played.places[0].door_open
    assert len(set(played.actions)) > 3
    params = TwoRooms().default_params.replace(max_steps_in_episode=4)
    assert len(episode(TwoRooms(), policy, KEY, params).actions) == 4


@pytest.mark.parametrize("executes_done", [True, False])
def test_an_episode_with_options(executes_done):
    options = [Option(APPROACH, done=DONE), Option(THROUGH, done=DONE), Option(lambda obs, key: DONE, length=1)]
    env = Options(TwoRooms(), options, bound=12, executes_done=executes_done)
    script = iter([0, 1, 2])
    names = ["open", "go", "end"]
    played = episode(env, lambda obs, key: next(script), KEY, start=START, names=names)
    if executes_done:
        # `through` is done on the tile, where `done` succeeds: the third option is not asked for.
        actions = [FORWARD, TOGGLE, DONE, *BEST[2:]]
        choices, firsts = [0] * 3 + [1] * 7, [0, 3]
    else:
        actions, choices, firsts = BEST, [0] * 2 + [1] * 6 + [2], [0, 2, 8]
    assert played.actions == actions and played.choices == choices
    assert played.decisions == [*range(len(firsts))]
    assert played.places == walk(START, actions)
    assert np.flatnonzero(played.decided).tolist() == firsts
    assert played.labels[:3] == ["open · forward", "open · toggle", f"{names[choices[2]]} · {ACTIONS[actions[2]]}"]
    assert played.reward == pytest.approx(1 - 0.9 * len(actions) / 50)
    unnamed = episode(env, lambda obs, key: 0, KEY, start=START)
    assert unnamed.labels[0] == "option 0 · forward" and len(unnamed.actions) == 50


def sees_the_goal(obs):
    return (obs[..., 0] == 8).any()


@pytest.mark.slow
@pytest.mark.parametrize("executes_done", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_an_episode_with_options_is_that_of_stepping_them(executes_done, seed):
    """Every stop rule, policies that sample and such as do not: the same states at every choice, and the same ends."""
    env = Options(
        TwoRooms(),
        [
            Option(APPROACH, done=DONE),
            Option(THROUGH, done=DONE, length=4),
            Option(wandering, done=LEFT),
            Option(wandering, done=TOGGLE, until=sees_the_goal),
            Option(lambda obs, key: jnp.argmax(obs[:, 4, 0]) % 3, length=7),
        ],
        bound=5,
        executes_done=executes_done,
    )
    params = env.default_params

    def policy(obs, key):
        return jax.random.randint(key, (), 0, 5)

    key = jax.random.key(seed)
    played = episode(env, policy, key)
    key_reset, key_play = jax.random.split(key)
    obs, state = env.reset_env(key_reset, params)
    assert played.places[0] == env.adapter.env.place_of(state.env_state)
    step = jax.jit(env.step_env)
    at, ended, reward, firsts = 0, False, 0.0, []
    for n in range(50):
        key_choice, key_run = jax.random.split(jax.random.fold_in(key_play, n))
        choice = int(policy(obs, key_choice))
        obs, state, _, terminated, info = step(key_run, state, choice, params)
        firsts.append(at)
        duration = int(info["duration"])
        assert played.choices[at : at + duration] == [choice] * duration
        at += duration
        assert played.places[at] == env.adapter.env.place_of(state.env_state)
        reward += float(info["undiscounted"])
        ended = bool(terminated | state.truncated)
        if ended:
            break
    assert ended and at == len(played.actions) and reward == played.reward
    assert np.flatnonzero(played.decided).tolist() == firsts
    assert played.places == walk(played.places[0], played.actions)


def test_episodes_refuse_bad_input():
    with pytest.raises(ValueError, match=r"^env:"):
        episode(make("Chain-v0")[0], wandering, KEY)
    with pytest.raises(ValueError, match=r"^names:"):
        episode(TwoRooms(), wandering, KEY, names=["one"])
    for choice in (7, -1):
        with pytest.raises(ValueError, match=f"policy: chose {choice}; .* 0 to 6"):
            episode(TwoRooms(), lambda obs, key, choice=choice: choice, KEY)
    with pytest.raises(ValueError, match=r"^place:"):
        episode(TwoRooms(), wandering, KEY, start=Place(0, 0, 0))


# --- pictures


def patches(ax, colour):
    """Lower corners of the rectangles of a colour."""
    rectangles = [patch for patch in ax.patches if hasattr(patch, "get_xy") and hasattr(patch, "get_width")]
    return {patch.get_xy() for patch in rectangles if patch.get_facecolor()[:3] == to_rgba(colour)[:3]}


def agents(ax):
    """Mean and foremost corner of each triangle."""
    triangles = [patch.get_xy()[:3] for patch in ax.patches if not hasattr(patch, "get_width")]
    return [(corners.mean(0), corners[0]) for corners in triangles]


def test_what_is_seen_is_what_minigrid_highlights(reference):
    for place in PLACES:
        reference.place = place
        _, mask = reference.gen_obs_grid()
        lit = set()
        for cell in itertools.product(range(9), range(5)):
            i, j = reference.get_view_coords(*cell)
            if 0 <= i < 7 and 0 <= j < 7 and mask[i, j]:
                lit.add(cell)
        assert seen_cells(place) == lit, place


@pytest.mark.parametrize("place", [Place(1, 1, 1), Place(3, 2, 0), Place(4, 2, 0, True), Place(6, 3, 2, True)])
def test_a_drawn_place(place):
    _, (ax,) = plotting.figure()
    draw_rooms(ax, place, label="below", count="3/4")
    assert patches(ax, rendering._SEEN) == seen_cells(place)
    walls = {(x, y) for x in range(9) for y in range(5) if x in (0, 8) or y in (0, 4) or (x == 4 and y != 2)}
    assert patches(ax, rendering._WALL) == walls
    for colour, (x, y) in (("#3b7dd8", (7, 1)), ("#3fa34d", (7, 3))):
        assert {(int(px), int(py)) for px, py in patches(ax, colour)} == {(x, y)}
    ((door_x, door_y),) = patches(ax, rendering._DOOR_COLOUR)
    assert (int(door_x), int(door_y)) == (4, 2)
    handle = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(handle) == (not place.door_open)
    ((middle, tip),) = agents(ax)
    assert tuple(middle.astype(int)) == place[:2]
    np.testing.assert_array_equal(np.round(2 * (tip - middle)), np.subtract(place.ahead, place[:2]))
    assert [text.get_text() for text in ax.texts] == ["below", "3/4"]
    assert ax.get_aspect() == 1 and not ax.axison and ax.get_ylim()[0] > ax.get_ylim()[1]


def test_a_drawn_trajectory():
    _, (ax,) = plotting.figure()
    places = walk(START, BEST)
    draw_trajectory(ax, places, label="green")
    (first, _), (last, _) = agents(ax)
    assert tuple(first.astype(int)) == START[:2] and tuple(last.astype(int)) == (7, 3)
    drawn = [(line.get_marker(), np.asarray(line.get_xydata())) for line in ax.lines]
    lines = [points for _, points in drawn if len(points) == 2]
    way = np.array([lines[0][0], *(line[1] for line in lines)])
    np.testing.assert_array_equal([line[0] for line in lines[1:]], way[1:-1])
    assert way.astype(int).tolist() == [[2, 2], [3, 2], [4, 2], [5, 2], [6, 2], [7, 2], [7, 3]]
    # It keeps to the right: going east below the middle, going south on the west side.
    np.testing.assert_allclose(way[1:-2, 1], 2.64)
    np.testing.assert_allclose(way[-2:] % 1, [[0.36, 0.64], [0.36, 0.5]])
    assert len([text for text in ax.texts if text.get_text() == ""]) == 6, "an arrow per step from cell to cell"
    assert [points.tolist() for marker, points in drawn if marker == "o"] == [[[4.0, 2.5]]]
    there_and_back = walk(Place(1, 1, 0), [FORWARD, LEFT, LEFT, FORWARD])
    np.testing.assert_allclose(rendering._path(there_and_back), [(1.5, 1.64), (2.5, 1.64), (2.5, 1.36), (1.5, 1.36)])
    assert rendering._path(walk(Place(1, 1, 0), [LEFT, LEFT])) == []


def test_files(tmp_path):
    places = walk(START, BEST)
    for name, what in (("place.png", START), ("way.png", places), ("still.png", [START, START])):
        save_png(tmp_path / name, what, label="a label")
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert picture.format == "PNG" and picture.width >= 3 * plotting.DPI
            assert picture.width / picture.height == pytest.approx(9 / 5.8, rel=0.01)
    # Twice the same place (`done` moves nothing) under the same label is still two frames.
    save_gif(tmp_path / "way.gif", places[-4:], ["a", "b", "c", "c"], seconds_per_frame=0.29)
    assert places[-1] == places[-2]
    with Image.open(tmp_path / "way.gif") as picture:
        assert picture.format == "GIF" and picture.info["loop"] == 0
        shown = [
            (frame.info["duration"], np.asarray(frame.convert("RGB"))) for frame in ImageSequence.Iterator(picture)
        ]
    durations, frames = zip(*shown, strict=True)
    assert durations == (290, 290, 290, 870)
    assert all((one != other).any() for one, other in itertools.pairwise(frames))
    save_gif(tmp_path / "bare.gif", [places[-4]] * 4)
    with Image.open(tmp_path / "bare.gif") as picture:
        unlabelled = np.asarray(picture.convert("RGB"))
    # Each file has colours of its own, some of them a shade apart.
    rows = np.flatnonzero((abs(unlabelled.astype(int) - frames[0]) > 64).any((1, 2)))
    assert rows.size and rows.min() > 5 / 5.8 * len(unlabelled), "the label is below the grid"


def test_pictures_refuse_bad_input(tmp_path):
    nowhere, inside = Place(4, 2, 0, False), Place(1, 1, 0)
    bare: Any = (1, 1, 0, False)
    _, (ax,) = plotting.figure()
    cases = [
        ("^place:", lambda: draw_rooms(ax, nowhere)),
        (r"place: expected a Place, got \(1, 1, 0, False\)", lambda: draw_rooms(ax, bare)),
        ("places: expected at least one Place, got none", lambda: draw_trajectory(ax, [])),
        (r"^places\[1\]:", lambda: draw_trajectory(ax, [inside, nowhere])),
        (r"places\[1\]: no action leads from", lambda: draw_trajectory(ax, [inside, Place(3, 3, 0)])),
        ("path: .* ends in .png, got 'a.gif'", lambda: save_png("a.gif", inside)),
        ("path: .* ends in .gif, got 'a.png'", lambda: save_gif("a.png", [inside])),
        ("^places:", lambda: save_gif(tmp_path / "a.gif", [])),
        (r"^places\[0\]:", lambda: save_gif(tmp_path / "a.gif", [nowhere])),
        ("^labels:", lambda: save_gif(tmp_path / "a.gif", [inside], ["a", "b"])),
        *(
            (
                "^seconds_per_frame:",
                lambda seconds=seconds: save_gif(tmp_path / "a.gif", [inside], seconds_per_frame=seconds),
            )
            for seconds in (0, 0.01, -1, float("nan"), float("inf"))
        ),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert not list(tmp_path.iterdir())
