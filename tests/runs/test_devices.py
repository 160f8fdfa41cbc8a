"""Many devices and many processes: the results of one device, up to the order of sums."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmarket import TrainConfig, collectives, fit
from jaxmarket.cli import main
from jaxmarket.runs import devices, processes, run_folder

SMALL = {"steps": 1024, "instances": 8, "horizon": 16, "minibatch": 32, "log_every": 4}
# jax 0.10 can deadlock with fewer threads than devices; and little is run of what is compiled here.
ENOUGH = {**os.environ, "NPROC": "16", "XLA_FLAGS": "--xla_backend_optimization_level=0"}


def test_a_mesh_takes_seeds_first():
    there = jax.devices() * 8
    for seeds, count, shape in ((8, 8, (8, 1)), (2, 8, (2, 4)), (1, 8, (1, 8)), (6, 4, (2, 2)), (3, 8, (1, 8))):
        mesh = devices.mesh(there[:count], seeds, instances=8, minibatch=16)
        assert tuple(mesh.shape.values()) == shape
        assert list(mesh.devices.flat) == there[:count]
    assert devices.mesh(there, 1, 8, minibatch=None) is not None  # an agent without a learner
    assert devices.mesh(1, 8, 8, 16) is None
    assert devices.mesh("all", 8, 8, 16) is None  # one device is all there are here


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, 1, 8, 16), "devices: expected an integer >= 1, got 0"),
        (("most", 1, 8, 16), "expected a number >= 1 or 'all', got 'most'"),
        ((True, 1, 8, 16), "got True"),
        ((2, 1, 8, 16), "^devices: .*got 2; set JAX_NUM_CPU_DEVICES"),
        (([], 1, 8, 16), "^devices: expected a number, 'all' or a sequence of devices"),
        (([object()], 1, 8, 16), "^devices: expected a number, 'all' or a sequence of devices"),
        ((jax.devices() * 3, 2, 8, 16), "^devices: "),
        ((jax.devices() * 2, 1, 8, 4), "^minibatch: .*got 4"),
    ],
)
def test_work_that_cannot_be_shared_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        devices.mesh(*given)


@pytest.mark.parametrize(
    ("seeds", "large", "groups"),
    [
        (8, False, None),
        (11, False, None),
        (12, False, 2),
        (64, False, 8),
        (20, False, 4),
        (1, True, None),
        (3, True, 3),
    ],
)
def test_many_seeds_run_in_groups_on_a_cpu(seeds, large, groups):
    state = {"key": jax.random.split(jax.random.key(0), seeds), "x": jnp.arange(2.0 * seeds).reshape(-1, 2)}
    state["visits"] = jnp.zeros((seeds, 0))  # of environments with unknown states

    def function(state):
        return state | {"x": state["x"] * 2 + jax.random.uniform(state["key"])}

    made = jax.make_jaxpr(lambda state: devices.over_seeds(function, state, large=large))(state)
    lengths = [equation.params["length"] for equation in made.eqns if equation.primitive.name == "scan"]
    assert lengths == ([] if groups is None else [groups])
    jax.tree.map(
        lambda one, other: (
            np.testing.assert_array_equal(jax.random.key_data(one), jax.random.key_data(other))
            if jnp.issubdtype(one.dtype, jax.dtypes.prng_key)
            else np.testing.assert_allclose(one, other, rtol=1e-6)
        ),
        devices.over_seeds(function, state, large=large),
        jax.vmap(function)(state),
    )


def test_on_one_device_nothing_is_added_up():
    values = jnp.arange(4.0)
    for function in (collectives.psum, collectives.pmax, collectives.per_shard, collectives.local_slice):
        assert function(values, None) is values
    assert devices.put(values, None, P()) is devices.gather(values, None) is values


BIDS_DO_NOT_MATTER = {"exploration": 1.0, "trace_decay": 0.0}
_PARITY = """
import sys, json, numpy as np, jax
from jaxmarket import TrainConfig, collectives, fit
assert jax.device_count() == 8
for settings in json.loads(sys.argv[1]):
    config = TrainConfig(**settings)
    one, many = (fit(config, jax.random.key(0), progress=False, devices=n) for n in (1, 8))
    for name, wanted in one.metrics.items():
        np.testing.assert_allclose(many.metrics[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    pairs = zip(jax.tree.leaves(one.state), jax.tree.leaves(many.state), strict=True)
    worst = 0.0
    for wanted, found in pairs:
        if jax.numpy.issubdtype(wanted.dtype, jax.dtypes.prng_key):
            wanted, found = map(jax.random.key_data, (wanted, found))
        assert wanted.dtype == found.dtype
        # Accounts are sums of payments of both signs, whose rounding is that of the largest.
        largest = np.abs(np.asarray(wanted, float)).max(initial=1)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * largest)
        worst = max(worst, float(np.abs(np.asarray(found, float) - np.asarray(wanted, float)).max(initial=0)))
    assert one.summary["env_steps"] == many.summary["env_steps"]
    print(settings, "worst difference", worst, flush=True)
"""


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
    """Every learner, with seeds that are spread, and seeds whose instances are; whole states after 8 updates."""
    every = [
        {"env": "Chain-v0", "seeds": 1, **SMALL},
        # No winner and no trace depends on which bid is highest: the first bids are nearly equal, and the order of
        # a sum decides between them.
        {"env": "CartPole-v1", "seeds": 2, "hidden": [4], "dropout": 0.3, "clones": 3, **BIDS_DO_NOT_MATTER, **SMALL},
        {"env": "Bandit-v0", "seeds": 2, "learner": "reinforce", "share_clones": False, **SMALL},
        {"env": "Chain-v0", "seeds": 1, "agent": "monolith", **SMALL},
        {"env": "Chain-v0", "seeds": 1, "agent": "monolith", "learner": "valuation", **SMALL},
        {"env": "Bandit-v0", "seeds": 8, "learner": "valuation", **SMALL},
        {
            "env": "CartPole-v1",
            "seeds": 8,
            "hidden": [4],
            "learner": "ppo",
            **SMALL,
        },  # its state has an array without entries
        # Large enough to be trained one module after the other.
        {"env": "Bandit-v0", "seeds": 1, "learner": "valuation", "hidden": [96, 96], **SMALL},
        {"env": "SupplyChain2-v0", "seeds": 1, "agent": "wide", **SMALL},
        {"env": "Chain-v0", "seeds": 8, "agent": "population", **{k: v for k, v in SMALL.items() if k != "minibatch"}},
    ]
    done = subprocess.run(
        [sys.executable, "-c", _PARITY, json.dumps(every)],
        env={**ENOUGH, "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("worst difference") == len(every)


def test_processes_are_distinguished():
    for given, message in (
        (("localhost:1", 2, 2), "^process: .*got 2"),
        (("localhost", 2, 0), "coordinator: expected HOST:PORT, got 'localhost'"),
    ):
        with pytest.raises(ValueError, match=message):
            processes.join(*given)
    with pytest.raises(ValueError, match="processes: expected an integer >= 1, got 0"):
        processes.launch([], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2", "list"], "command: expected train and its settings, got list"),
        (["--processes=2"], "got none"),
        (["train", "Chain-v0"], "--processes"),
        (
            ["--processes=2", "train", "Chain-v0", "--process", "1"],
            "process: expected both --coordinator and --process",
        ),
    ],
)
def test_the_command_line_says_what_it_cannot_launch(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["launch", *arguments])
    assert message in capsys.readouterr().err


def _child(number: int, parent: int) -> int:
    """The process id of one of a launch's processes."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            words, line = status.read_text().rsplit(")", 1)[1].split(), (status.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(words[1]) == parent and f"--process\0{number}\0" in line:
            return int(status.parent.name)
    raise LookupError(number)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the process to kill in /proc")
def test_two_processes_over_loopback_one_is_killed_and_the_run_resumed(tmp_path):
    """The documented commands give the results of one device, and a clear message if a process dies."""
    settings = {**SMALL, "steps": 40_960, "log_every": 4, "learner": "valuation"}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    launch = [sys.executable, "-P", "-m", "jaxmarket", "launch", "--processes", "2", "train"]
    first = subprocess.Popen(
        [*launch, "Bandit-v0", *flags, "--checkpoint-every", "0", "--out", "run"],
        cwd=tmp_path, env=ENOUGH, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("run/checkpoints/*.safetensors")) and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(_child(1, first.pid), signal.SIGKILL)
    _, error = first.communicate(timeout=120)
    assert first.returncode == 1, error
    last = error.splitlines()[-1]
    assert last.startswith("jaxmarket: process 1 of 2 was killed (SIGKILL); the others were stopped")
    assert last.endswith("resume with: jaxmarket launch --processes 2 train --resume run")
    assert not (tmp_path / "run" / "summary.json").exists()

    refused = subprocess.run(
        [*launch, "Bandit-v0", "--out", "run"],
        cwd=tmp_path, env=ENOUGH, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert refused.stderr.count("out: run holds an unfinished run") == 1

    second = subprocess.run(
        [*launch, "--resume", "run", "--json"],
        cwd=tmp_path, env=ENOUGH, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert second.returncode == 0, second.stderr
    summary = json.loads(second.stdout.splitlines()[-1])
    wanted = fit(TrainConfig("Bandit-v0", **settings), jax.random.key(0), progress=False)
    found = run_folder.read(tmp_path / "run")
    assert summary["params_sha256"] == found.summary["params_sha256"]
    for name, values in wanted.metrics.items():
        np.testing.assert_allclose(found.metrics[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found.networks, wanted.networks)
    np.testing.assert_allclose(summary["return_mean"], wanted.summary["return_mean"])
