"""Mazes compared with independent rules and searches; the bound without memory, and solutions with one bit."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxmarket import make
from jaxmarket.environments import Maze, Maze4, Maze5, Maze6, Memory, Woods1, Woods101, adapt
from jaxmarket.environments.mazes import COMPASS
from jaxmarket.testing import check_environment

KEY = jax.random.key(0)
NAMES = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")
N, NE, E, SE, S, SW, W, NW = range(8)
ARROWS = {"N": (-1, 0), "E": (0, 1), "S": (1, 0), "W": (0, -1)}


def neighbour(layout, wrap, cell, name):
    """(Cell, content) next to a cell, letter by letter of the direction's name."""
    row, column = (x + sum(ARROWS[letter][axis] for letter in name) for axis, x in enumerate(cell))
    rows, columns = len(layout), len(layout[0])
    if wrap:
        row, column = row % rows, column % columns
    if not (0 <= row < rows and 0 <= column < columns):
        return None, "O"
    return (row, column), layout[row][column]


@st.composite
def mazes(draw, limit=3):
    """Small mazes in which every free cell has a path to food."""
    rows, columns = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    layout = [
        "".join(draw(st.lists(st.sampled_from("...OOF"), min_size=columns, max_size=columns))) for _ in range(rows)
    ]
    assume("F" in "".join(layout) and "." in "".join(layout))
    try:
        return Maze(layout, moves=draw(st.sampled_from([4, 8])), wrap=draw(st.booleans()), limit=limit)
    except ValueError as error:
        assert "no path leads" in str(error)
        assume(False)


# --- the rules


@settings(max_examples=100, deadline=None)
@given(mazes())
def test_moves_views_and_distances(maze):
    names = NAMES if len(maze.moves) == 8 else NAMES[::2]
    after = {}
    for cell, row in zip(maze.places, maze.successors, strict=True):
        assert maze.layout[cell[0]][cell[1]] != "O"
        around = [neighbour(maze.layout, maze.wrap, cell, name)[1] for name in NAMES]
        assert maze.view(cell).tolist() == [int(bit) for x in around for bit in {".": "00", "O": "10", "F": "11"}[x]]
        after[cell] = []
        for name, successor in zip(names, row, strict=True):
            there, content = neighbour(maze.layout, maze.wrap, cell, name)
            after[cell].append(cell if content == "O" else there)
            assert maze.places[successor] == after[cell][-1]
    for cell, steps in zip(maze.places, maze.distances, strict=True):
        assert steps == search(maze, after, cell)
    assert maze.starts == maze.free == tuple(c for c in after if maze.layout[c[0]][c[1]] == ".")
    shortest = [search(maze, after, cell) for cell in maze.starts]
    assert maze.mean_shortest() == pytest.approx(np.mean(shortest))
    assert maze.optimal_return() == pytest.approx(np.mean([steps <= maze.limit for steps in shortest]))


def search(maze, after, start):
    """Breadth-first from one cell."""
    queue, steps = collections.deque([start]), {start: 0}
    while True:
        cell = queue.popleft()
        if maze.layout[cell[0]][cell[1]] == "F":
            return steps[cell]
        for there in after[cell]:
            if there not in steps:
                steps[there] = steps[cell] + 1
                queue.append(there)


@pytest.mark.parametrize("maze", [Woods1(), Woods101(), Maze(["..F", ".O."], moves=4, limit=7)])
def test_steps_are_the_rules(maze):
    """Every place and move at once."""
    params = maze.default_params
    states = jax.vmap(lambda i: maze.state_at(maze.places[0]).replace(index=i))(jnp.arange(len(maze.places)))
    step = jax.jit(jax.vmap(jax.vmap(maze.step_env, (None, None, 0, None)), (None, 0, None, None)))
    obs, after, reward, terminated, _ = step(KEY, states, jnp.arange(maze.num_actions), params)
    for i, a in itertools.product(range(len(maze.places)), range(maze.num_actions)):
        cell = maze.move(maze.places[i], a)
        assert maze.cell_of(jax.tree.map(lambda x, at=(i, a): x[at], after)) == cell
        np.testing.assert_array_equal(obs[i, a], maze.view(cell))
        assert bool(terminated[i, a]) == (maze.layout[cell[0]][cell[1]] == "F") == float(reward[i, a])
    assert (after.time == 1).all()
    for time in (maze.limit - 1, maze.limit):
        assert bool(maze.is_truncated(maze.state_at(maze.places[0], time), params)) == (time == maze.limit)


@pytest.mark.parametrize("maze", [Woods1(), Woods101()])
def test_starts_are_uniform(maze):
    n = 4000
    obs, states = jax.jit(jax.vmap(maze.reset_env, (0, None)))(jax.random.split(KEY, n), maze.default_params)
    counts = collections.Counter(maze.places[i] for i in states.index.tolist())
    assert set(counts) == set(maze.starts) and not states.time.any()
    # Hoeffding and a union bound: fails with probability 1e-6.
    bound = np.sqrt(np.log(2 * len(counts) / 1e-6) / (2 * n))
    assert max(abs(count / n - 1 / len(counts)) for count in counts.values()) < bound
    np.testing.assert_array_equal(obs[0], maze.view(maze.places[int(states.index[0])]))


# --- Woods1


def test_woods1():
    """Wilson's 1.7 steps, by hand: the ring around the clump of rocks, seen from the food at (1, 3)."""
    maze = Woods1()
    assert len(maze.free) == 16 == len({maze.view(cell).tobytes() for cell in maze.free})
    wrapped = [max(min(abs(r - 1), 5 - abs(r - 1)), min(abs(c - 3), 5 - abs(c - 3))) for r, c in maze.free]
    assert maze.mean_shortest() == np.mean(wrapped) == 27 / 16, "no rock is in the way"
    assert maze.optimal_return() == maze.memoryless_return() == 1


@pytest.mark.parametrize(("make_maze", "starts", "steps"), [(Maze4, 26, 91), (Maze5, 36, 166), (Maze6, 36, 188)])
def test_mazes_of_classifier_systems(make_maze, starts, steps):
    """The published means of Maze4 and Maze5 are 3.5 and 4.61 steps."""
    maze = make_maze()
    assert len(maze.starts) == starts and maze.mean_shortest() == pytest.approx(steps / starts)
    assert maze.memoryless_return() == 1, "equal observations share a best move"
    assert sum(len(group) > 1 for group in classes(maze)) == (2 if make_maze is Maze6 else 0)


# --- what takes memory


def classes(maze):
    """Free cells grouped by their observation."""
    alike = collections.defaultdict(list)
    for cell in maze.free:
        alike[maze.view(cell).tobytes()].append(cell)
    return list(alike.values())


def test_woods101_by_hand():
    maze = Woods101()
    assert len(maze.free) == 10 and maze.limit == 3
    assert classes(maze) == [
        [(1, 1)],
        [(1, 2), (1, 4)],
        [(1, 3)],
        [(1, 5)],
        [(2, 1)],
        [(2, 3)],
        [(2, 5)],
        [(3, 1), (3, 5)],
    ]
    assert set(maze.starts) == {group[0] for group in classes(maze) if len(group) == 1}
    # The only ways of three steps from the outer starts; the two cells that look alike are their second ones.
    for start, way in {(1, 1): [E, SE, S], (2, 1): [NE, SE, S], (1, 5): [W, SW, S], (2, 5): [NW, SW, S]}.items():
        ways = [moves for moves in itertools.product(range(8), repeat=3) if follow(maze, start, moves) == (3, 3)]
        assert ways == [tuple(way)]
        assert follow(maze, start, way[:1]) in [(1, 2), (1, 4)]
    assert maze.mean_shortest() == (4 * 3 + 2 + 1) / 6
    assert maze.optimal_return() == 1
    assert maze.memoryless_return() == 4 / 6


def follow(maze, cell, moves):
    for move in moves:
        cell = maze.move(cell, move)
        if maze.layout[cell[0]][cell[1]] == "F":
            break
    return cell


def fed(maze, policy):
    """Exact share of episodes that end with food; ``policy(t, place)`` are probabilities f [moves]."""
    food = maze.distances == 0
    mass = np.zeros(len(maze.places))
    for cell in maze.starts:
        mass[maze.places.index(cell)] += 1 / len(maze.starts)
    for t in range(maze.limit):
        after = np.where(food, mass, 0)
        for i in np.flatnonzero(~food):
            np.add.at(after, maze.successors[i], mass[i] * policy(t, i))
        mass = after
    return mass[food].sum()


def test_the_best_without_memory_is_attained():
    maze = Woods101()
    table = {
        (1, 1): E,
        (1, 2): SE,
        (1, 3): S,
        (1, 4): SE,
        (1, 5): W,
        (2, 1): NE,
        (2, 3): S,
        (2, 5): NW,
        (3, 1): N,
        (3, 5): N,
    }
    assert all(len({table[cell] for cell in group}) == 1 for group in classes(maze)), "it cannot tell them apart"
    value = fed(maze, lambda t, i: np.eye(8)[table[maze.places[i]]])
    assert value == pytest.approx(maze.memoryless_return(), abs=1e-12)


def test_no_table_without_memory_is_better():
    """Every deterministic one, moves with the same effect taken once."""
    maze = Woods101()
    groups = [group for group in classes(maze) if (3, 1) not in group]  # where no start leads in time
    options = [{tuple(maze.move(cell, a) for cell in group) for a in range(8)} for group in groups]
    best = 0
    for effects in itertools.product(*options):
        after = {
            cell: there
            for group, effect in zip(groups, effects, strict=True)
            for cell, there in zip(group, effect, strict=True)
        }
        count = 0
        for start in maze.starts:
            cell = start
            for _ in range(3):
                cell = after.get(cell, cell)
            count += cell == (3, 3)
        best = max(best, count)
    assert best / 6 == maze.memoryless_return()


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0]), st.booleans())
def test_coins_and_clocks_do_not_help(seed, concentration, clock):
    """Stochastic policies, most of them close to the best deterministic ones."""
    maze, rng = Woods101(), np.random.default_rng(seed)
    group = {cell: i for i, cells in enumerate(classes(maze)) for cell in cells}
    good = {(1, 1): E, (1, 3): S, (1, 5): W, (2, 1): NE, (2, 3): S, (2, 5): NW}
    tables = rng.dirichlet(np.full(8, concentration), (3, len(classes(maze))))
    for cell, move in good.items():
        tables[:, group[cell]] = 0.1 * rng.random() * tables[:, group[cell]]
        tables[:, group[cell], move] += 1 - tables[:, group[cell]].sum(-1)
    value = fed(maze, lambda t, i: tables[t if clock else 0, group[maze.places[i]]])
    assert value <= maze.memoryless_return() + 1e-12
    assert value >= (0.9 + 0.9**2) / 6, "at least the two starts in the middle, or the test is of no use"


def test_a_bit_is_enough():
    """With one bit, a policy that writes its side in the first step and reads it later succeeds from every start."""
    maze = Woods101()
    env = Memory(maze, registers=1)
    params = env.default_params
    write_right = 8 * 2  # the bit becomes 1
    table = {(1, 1): E, (2, 1): NE, (1, 5): W + write_right, (2, 5): NW + write_right, (1, 3): S, (2, 3): S}

    def policy(obs):
        seen, bit = obs[:16].astype(int), int(obs[16])
        if (seen == maze.view((1, 2))).all():
            return SW if bit else SE
        return next(a for cell, a in table.items() if (maze.view(cell) == seen).all())

    step = jax.jit(env.step_env)
    fresh = env.reset_env(KEY, params)[1]
    for cell in maze.starts:
        state = fresh.replace(env_state=maze.state_at(cell))
        obs, rewards = np.append(maze.view(cell), 0), []
        for _ in range(3):
            obs, state, reward, terminated, _ = step(KEY, state, policy(obs), params)
            rewards.append(float(reward))
            if terminated:
                break
        assert terminated and sum(rewards) == 1
        assert len(rewards) == maze.distances[maze.places.index(cell)]
    assert env.optimal_return() == 1


@settings(max_examples=60, deadline=None)
@given(mazes(limit=2), st.integers(0, 2**32 - 1))
def test_no_policy_beats_the_bound(maze, seed):
    assume(maze.num_actions ** len(classes(maze)) <= 4096)  # the search can try every deterministic policy
    rng = np.random.default_rng(seed)
    group = {cell: i for i, cells in enumerate(classes(maze)) for cell in cells}
    bound = maze.memoryless_return()
    assert bound <= maze.optimal_return()
    for concentration in (0.05, 1.0):
        tables = rng.dirichlet(np.full(maze.num_actions, concentration), (2, len(group)))
        assert fed(maze, lambda t, i, p=tables: p[t, group[maze.places[i]]]) <= bound + 1e-12


def test_the_bound_is_that_of_trying_everything():
    """A corridor with food in the middle: the cells two steps left and right of it have equal observations."""
    maze = Maze(["...F..."], moves=4, limit=2, starts=[(0, 1), (0, 2), (0, 4), (0, 5)])
    group = {cell: i for i, cells in enumerate(classes(maze)) for cell in cells}
    assert group[0, 1] == group[0, 5] and len(classes(maze)) == 5
    best = 0
    for flat in itertools.product((0, 1, 3), repeat=10):  # north is staying, as south is
        tables, count = (flat[:5], flat[5:]), 0
        for start in maze.starts:
            cell = start
            for table in tables:
                cell = maze.move(cell, table[group[cell]]) if cell in group else cell
            count += cell == (0, 3)
        best = max(best, count)
    assert maze.memoryless_return() == best / 4 == 0.75
    # With a step to spare, a clock would tell left from right: the bound allows for one.
    assert Maze(["...F..."], moves=4, limit=4, starts=[(0, 0), (0, 6)]).memoryless_return() == 1
    assert Maze(["...F..."], moves=4, limit=3, starts=[(0, 0), (0, 6)]).memoryless_return() == 0.5


# --- the contract of an environment


def test_contract():
    check_environment(Woods101())


def test_dtypes_under_x64():
    with jax.enable_x64(True):
        maze = Woods101()
        params = maze.default_params
        obs, state = jax.eval_shape(maze.reset_env, KEY, params)
        after = jax.eval_shape(maze.step_env, KEY, state, 0, params)
        assert obs.dtype == after[0].dtype == after[2].dtype == jnp.float64
        assert state == after[1] and state.index.dtype == jnp.int32


def test_mazes_compare_by_value():
    env, params = make("Woods101-v0")
    assert env is make("Woods101-v0")[0] and env.name == "Woods101-v0" and params.max_steps_in_episode == 3
    assert make("Woods1-v0")[0] == Woods1() != env != "Woods101-v0"
    assert Maze(["F."]) == Maze(("F.",)) and hash(Maze(["F."])) == hash(Maze(("F.",)))
    others = [{"moves": 4}, {"wrap": True}, {"limit": 3}, {"starts": [(0, 1)]}, {"name": "Mine"}]
    assert len({Maze(["F.."]), *(Maze(["F.."], **other) for other in others)}) == 6
    assert adapt(env).num_actions == 8 and adapt(env).longest_episode(params) == 3
    assert len(COMPASS) == 8 and Maze(["F."], moves=4).moves == ((-1, 0), (0, 1), (1, 0), (0, -1))


@pytest.mark.parametrize(
    ("layout", "arguments", "message"),
    [
        ([], {}, "layout: expected rows of the same length"),
        (["F.", "."], {}, "layout: expected rows of the same length"),
        (["F#"], {}, "layout: .* got '#'"),
        (["..O"], {}, "layout: .* food.* got none"),
        ([".OF"], {}, r"layout: no path leads from \(0, 0\) to food"),
        (["F."], {"moves": 6}, "moves: expected 4 or 8, got 6"),
        (["F."], {"limit": 0}, "limit: expected an integer >= 1, got 0"),
        (["F."], {"starts": [(0, 0)]}, r"starts: expected free cells \(row, column\), got \(0, 0\)"),
        (["FO"], {}, "starts: expected at least one free cell"),
    ],
)
def test_bad_input_is_refused(layout, arguments, message):
    with pytest.raises(ValueError, match=message):
        Maze(layout, **arguments)


def test_state_at_rock_is_an_error():
    with pytest.raises(ValueError, match=r"cell: \(0, 0\) .*; choose from \(1, 1\), "):
        Woods101().state_at((0, 0))


def test_first_states_and_views_as_text():
    maze = Maze(("..F", ".O."), starts=((0, 1), (1, 0)))
    first = maze.first_states()
    assert [maze.cell_of(jax.tree.map(lambda leaf, i=i: leaf[i], first)) for i in range(2)] == [(0, 1), (1, 0)]
    assert not first.time.any()
    assert maze.describe(maze.view((0, 1))) == "E:food SE SW W"
