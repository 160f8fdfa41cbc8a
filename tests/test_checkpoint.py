"""Checkpoints: exact, atomic, and never taken for what they are not."""

import os
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxmarket.checkpoint import Checkpoints, digest, flatten, restore, save, unflatten


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
    with Checkpoints(tmp_path / "two") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, flatten(tree) | {"step": np.asarray(step)}, {"nested": {"list": [1, None, "é"]}})
    return tmp_path / "two"


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for name, value in flatten(one).items():
        found = flatten(other)[name]
        assert (value.dtype, value.shape) == (found.dtype, found.shape)
        np.testing.assert_array_equal(value, found)


def test_a_state_comes_back_bit_for_bit(two, tree):
    with Checkpoints(two) as checkpoints:
        step, (arrays, note) = checkpoints.last()
    assert (step, note) == (2, {"nested": {"list": [1, None, "é"]}})
    assert arrays.pop("step") == 2
    same(unflatten(tree, arrays), tree)
    assert digest(arrays) == digest(flatten(tree))


def test_only_the_last_two_are_kept(two, tree):
    with Checkpoints(two) as checkpoints:
        checkpoints.save(7, flatten(tree), {})
        assert checkpoints.steps() == [2, 7]


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(hnp.scalar_dtypes().filter(lambda d: d.kind in "biuf"), hnp.array_shapes(max_dims=2, max_side=3)),
    st.data(),
)
def test_the_digest_tells_everything_apart(array, data):
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


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", ["cut", "flipped", "emptied", "removed", "added"])
def test_a_damaged_checkpoint_is_an_error_and_the_one_before_is_intact(two, tree, how):
    """Every file in turn. Without its seal a checkpoint counts as never completed."""
    for path in files(two / "2"):
        content = path.read_bytes()
        changed = {
            "cut": content[: len(content) // 2],
            "emptied": b"",
            "flipped": bytes([content[0] ^ 1]) + content[1:],
        }
        if (path.name == "sha256" and how == "removed") or not content:
            continue
        if how == "removed":
            path.unlink()
        elif how == "added":
            path.with_name("more").write_bytes(content)
        else:
            path.write_bytes(changed[how])
        with (
            Checkpoints(two) as checkpoints,
            pytest.raises(ValueError, match=r"2: the checkpoint is damaged, .*step 1"),
        ):
            checkpoints.last()
        path.write_bytes(content)
        path.with_name("more").unlink(missing_ok=True)
    with Checkpoints(two) as checkpoints:
        assert checkpoints.last()[0] == 2  # all is well again
        (two / "2" / "sha256").write_text("0")
    os.rename(two / "2", two.parent / "elsewhere")
    with Checkpoints(two) as checkpoints:
        step, (arrays, _) = checkpoints.last()
    assert (step, arrays.pop("step")) == (1, 1)
    same(unflatten(tree, arrays), tree)


def test_what_was_killed_before_it_was_sealed_is_cleared_away(two):
    (two / "2" / "sha256").unlink()
    (two / "3.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(two) as checkpoints:
        assert checkpoints.last()[0] == 1
    assert [path.name for path in two.iterdir()] == ["1"]


def test_a_checkpoint_that_was_interrupted_can_be_made_again(two, tree):
    with Checkpoints(two) as checkpoints:
        (two / "2" / "sha256").unlink()
        checkpoints.save(2, flatten(tree), {"again": True})
        assert checkpoints.last()[1].note == {"again": True}


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(two):
    """Files may not grow beyond 10 kB, as if the disk were full."""
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(two) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(ValueError, match=r"cannot write the checkpoint of step 3 .*that of step 2 is intact"):
                checkpoints.save(3, {"noise": noise}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Checkpoints(two) as checkpoints:
        assert checkpoints.last()[0] == 2
        checkpoints.save(3, {"noise": noise}, {})
        assert checkpoints.last()[0] == 3


@pytest.mark.parametrize("where", ["file/checkpoints", "/proc/checkpoints"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="checkpoints: cannot be written"):
        Checkpoints(tmp_path / where)


def test_networks_are_read_by_orbax_alone_and_damage_to_them_is_found(tmp_path):
    networks = {"policy": {"params": {"kernel": jnp.arange(6.0).reshape(2, 3)}}}
    save(tmp_path / "networks", networks)
    with ocp.StandardCheckpointer() as checkpointer:
        np.testing.assert_array_equal(
            checkpointer.restore(tmp_path / "networks", networks)["policy"]["params"]["kernel"],
            networks["policy"]["params"]["kernel"],
        )
    like = jax.eval_shape(lambda: networks)
    same(restore(tmp_path / "networks", like), networks)
    biggest = max(files(tmp_path / "networks" / "d") or files(tmp_path / "networks"), key=lambda p: p.stat().st_size)
    content = biggest.read_bytes()
    biggest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="networks: damaged, its files are not those that were written"):
        restore(tmp_path / "networks", like)
    with pytest.raises(ValueError, match="nothing: no saved parameters here"):
        restore(Path(tmp_path / "nothing"), like)
