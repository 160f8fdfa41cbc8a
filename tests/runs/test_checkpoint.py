"""Checkpoints: exact, atomic, and never taken for what they are not."""

import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save as save_alone

from jaxmarket.runs.checkpoint import Checkpoints, restore, save
from jaxmarket.training.arrays import digest, flatten, unflatten


@pytest.fixture
def tree():
    return {
        "key": jax.random.split(jax.random.key(3)),
        "deep": {"x/y.z": jnp.arange(5, dtype=jnp.int32), "none": jnp.zeros((2, 0)), "on": jnp.array([True, False])},
        "number": jnp.float32(0.1),
    }


@pytest.fixture
def two(tmp_path, tree):
    """A folder with checkpoints of steps 1 and 2, which hold other numbers."""
    for step in (1, 2):
        arrays, note = flatten(tree) | {"step": np.asarray(step)}, {"nested": {"list": [1, None, "é"]}}
        Checkpoints(tmp_path / "two").save(step, arrays, note)
    return tmp_path / "two"


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for name, value in flatten(one).items():
        found = flatten(other)[name]
        assert (value.dtype, value.shape) == (found.dtype, found.shape)
        np.testing.assert_array_equal(value, found)


@pytest.mark.bits
def test_a_state_comes_back_bit_for_bit(two, tree):
    step, (arrays, note) = Checkpoints(two).last()
    assert (step, note) == (2, {"nested": {"list": [1, None, "é"]}})
    assert arrays.pop("step") == 2
    same(unflatten(tree, arrays), tree)
    assert digest(arrays) == digest(flatten(tree))


def test_equal_checkpoints_are_equal_files(tmp_path, tree):
    for name in ("one", "other"):
        save(tmp_path / name, tree, {"b": 1, "a": 2})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_only_the_last_two_are_kept(two, tree):
    checkpoints = Checkpoints(two)
    checkpoints.save(7, flatten(tree), {})
    assert checkpoints.steps() == [2, 7]


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(hnp.scalar_dtypes().filter(lambda d: d.kind in "biuf"), hnp.array_shapes(max_dims=2, max_side=3)),
    st.data(),
)
def test_digest_differs_for_different_arrays(array, data):
    before = digest({"a": array})
    assert before == digest({"a": array.copy(order="F")})
    other = bytearray(array.tobytes())
    other[data.draw(st.integers(0, len(other) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert before != digest({"a": np.frombuffer(bytes(other), array.dtype).reshape(array.shape)})
    assert before != digest({"b": array})
    assert before != digest({"a": array[None]})
    assert before != digest({"a": array, "b": array})
    assert before != digest({"a": array.view(f"V{array.dtype.itemsize}")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"more": np.zeros(1)}, "more is only there"),
        (lambda a: {k: v for k, v in a.items() if k != "number"}, "number is only here"),
        (lambda a: a | {"number": np.zeros(3, np.float32)}, r"number is float32\[3\] there, float32\[\] here"),
        (lambda a: a | {"number": np.float64(1)}, "number is float64"),
    ],
)
def test_arrays_of_something_else_are_refused(tree, change, message):
    with pytest.raises(ValueError, match=message):
        unflatten(tree, change(flatten(tree)))


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda _: b"",
    "flipped in the header": lambda content: content[:9] + bytes([content[9] ^ 1]) + content[10:],
    "flipped in the arrays": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "another note": lambda content: content.replace(b"nested", b"mested"),
    "longer": lambda content: content + b"0",
    "not ours": lambda _: save_alone({"a": np.zeros(1)}),
    "a huge header": lambda content: (2**40).to_bytes(8, "little") + content[8:],
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_an_error_and_the_one_before_is_intact(two, tree, how):
    path = two / "2.safetensors"
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    checkpoints = Checkpoints(two)
    with pytest.raises(ValueError, match=r"2.safetensors: the checkpoint is damaged, .*resume from step 1"):
        checkpoints.last()
    path.unlink()
    step, (arrays, _) = checkpoints.last()
    assert (step, arrays.pop("step")) == (1, 1)
    same(unflatten(tree, arrays), tree)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("kind", ["pipe", "link", "device", "folder"])
def test_only_regular_files_are_read(two, kind):
    """Pipes, devices and links in an untrusted folder are not opened: they may block, be endless or lead anywhere."""
    path = two / "2.safetensors"
    path.unlink()
    {
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(two / "1.safetensors"),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
    }[kind]()
    with pytest.raises(ValueError, match=r"2\.safetensors: the checkpoint is damaged"):
        Checkpoints(two).last()


def test_a_write_that_was_killed_leaves_nothing_that_counts(two):
    (two / "3.safetensors.tmp").write_bytes((two / "2.safetensors").read_bytes()[:100])
    with Checkpoints(two) as checkpoints:
        assert checkpoints.last()[0] == 2
    assert sorted(path.name for path in two.iterdir()) == ["1.safetensors", "2.safetensors"]


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(two):
    """Files may not grow beyond 10 kB, as if the disk were full."""
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(two)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ValueError, match=r"3.safetensors: cannot be written .*that of step 2 is intact"):
            checkpoints.save(3, {"noise": noise}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.last()[0] == 2
    checkpoints.save(3, {"noise": noise}, {})
    assert checkpoints.last()[0] == 3


@pytest.mark.parametrize("where", ["file/checkpoints", "/proc/checkpoints"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"checkpoints/1\.safetensors: cannot be written"):
        Checkpoints(tmp_path / where).save(1, {"x": np.zeros(1)}, {})


@pytest.mark.parametrize("name", ["with space", "exp[seed]", "a\\b", "a[", "a*b", "a?b", "ä 💰", "$HOME", "%s", "~"])
def test_any_path_that_the_file_system_accepts_works(tmp_path, tree, name):
    """Paths with brackets, which Orbax interpreted as a pattern."""
    path = tmp_path / name / "networks.safetensors"
    save(path, tree)
    same(restore(path, tree), tree)
    Checkpoints(tmp_path / name).save(1, flatten(tree), {})
    assert Checkpoints(tmp_path / name).last()[0] == 1


def test_parameters_are_read_by_safetensors_alone_and_only_where_they_fit(tmp_path):
    networks = {"policy": {"params": {"kernel": jnp.arange(6.0).reshape(2, 3)}}}
    path = tmp_path / "networks.safetensors"
    save(path, networks)
    found = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(found["policy/params/kernel"], np.arange(6.0).reshape(2, 3))
    like = jax.eval_shape(lambda: networks)
    same(restore(path, like), networks)
    with pytest.raises(ValueError, match=r"these parameters are of another society: policy/params/kernel is float32"):
        restore(path, {"policy": {"params": {"kernel": jnp.zeros((3, 2))}}})
    with pytest.raises(ValueError, match=r"cannot be read .*at most"):  # far more than what is asked for is not read
        (tmp_path / "large").write_bytes(bytes(2**25))
        restore(tmp_path / "large", like)
    with pytest.raises(ValueError, match="nothing: cannot be read"):
        restore(tmp_path / "nothing", like)
