"""Loggers: what they write, of every seed, and that a resumed run is in no file twice."""

import csv
import json
import sys
import types

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxmarket import TrainConfig, fit
from jaxmarket.cli import main
from jaxmarket.runs import sinks
from jaxmarket.runs.sinks import Record

SMALL = {"steps": 512, "instances": 8, "horizon": 16, "minibatch": 32, "seeds": 2, "log_every": 1}


def records(chunks=3, earlier=0):
    for i in range(1, chunks + 1):
        metrics = {"return_mean": np.array([i, np.nan]), "wins": np.array([[0.25, 0.75], [1, 0]])}
        yield Record(i, chunks, 10 * i, np.array([20 * i, 30 * i]), metrics, earlier=i <= earlier)


def log_all(logger, **which):
    for record in records(**which):
        logger(record)


def test_json_lines_keep_the_seed_axis_and_begin_anew(tmp_path):
    for _ in range(2):
        log_all(sinks.json_lines(tmp_path / "metrics.jsonl"), earlier=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"chunk": i, "env_steps": [20 * i, 30 * i], "return_mean": [i, None], "wins": [[0.25, 0.75], [1, 0]]}
        for i in (1, 2, 3)
    ]


def test_csv_has_a_row_per_seed(tmp_path):
    for _ in range(2):
        log_all(sinks.csv_rows(tmp_path / "metrics.csv"), earlier=2)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["chunk"], row["seed"], row["env_steps"]) for row in rows] == [
        (str(i), str(s), str((20, 30)[s] * i)) for i in (1, 2, 3) for s in (0, 1)
    ]
    assert rows[1]["return_mean"] == "nan"
    assert (rows[0]["wins[0]"], rows[0]["wins[1]"]) == ("0.25", "0.75")


def test_the_console_shows_mean_and_spread_of_new_chunks(capsys):
    log_all(sinks.console(), earlier=2)
    assert capsys.readouterr().out == "3/3 · 150 steps · return_mean 3.000 ± 0.000\n"


def scalars(path):
    """The events of an event file, parsed without TensorBoard: length, checksum, event, checksum."""
    content, found = path.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + size])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        content = content[16 + size :]
    return found


def test_tensorboard_has_a_run_per_seed_and_nothing_twice(tmp_path):
    for _ in range(2):
        log_all(sinks.tensorboard(tmp_path), earlier=2)
    first, second = (list((tmp_path / f"seed{i}").glob("events.*")) for i in (0, 1))
    assert len(first) == len(second) == 1
    found = scalars(first[0])
    assert [f for f in found if f[0] == "return_mean"] == [("return_mean", 20 * i, i) for i in (1, 2, 3)]
    assert ("wins/1", 40, 0.75) in found
    assert {tag for tag, *_ in scalars(second[0])} == {"wins/0", "wins/1"}  # NaN is not drawn


def test_weights_and_biases_gets_every_seed(monkeypatch):
    """A stub of the client records the logged values."""
    told = []
    run = types.SimpleNamespace(log=lambda values, step: told.append((step, values)))
    client = types.ModuleType("wandb")
    client.init = lambda **settings: told.append(settings) or run
    monkeypatch.setitem(sys.modules, "wandb", client)
    log_all(sinks.wandb(project="p", id="x"))
    assert told[0] == {"project": "p", "id": "x"}
    assert [step for step, _ in told[1:]] == [1, 2, 3]
    assert told[2][1] == {
        "seed0/return_mean": 2, "seed0/wins[0]": 0.25, "seed0/wins[1]": 0.75, "seed1/wins[0]": 1, "seed1/wins[1]": 0,
        "seed0/env_steps": 40, "seed1/env_steps": 60,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_an_extra_that_is_missing_is_named(monkeypatch, tmp_path, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"pip install 'jaxmarket\[{name}\]'"):
        sinks.LOGGERS[name](tmp_path)


def test_unknown_loggers_and_missing_folders_are_named(capsys):
    for given, message in (
        (["--log", "excel"], "unknown logger 'excel'; choose from console"),
        (["--log", "jsonl"], "give --out"),
    ):
        with pytest.raises(SystemExit):
            main(["train", "Bandit-v0", *given])
        assert message in capsys.readouterr().err


def test_a_logger_of_ones_own_is_called_after_every_chunk():
    seen = []
    config = TrainConfig("Bandit-v0", learner="valuation", **SMALL)
    result = fit(config, jax.random.key(0), progress=False, loggers=[seen.append])
    assert [(r.chunk, r.chunks, r.auctions, r.earlier) for r in seen] == [(i, 4, 128 * i, False) for i in (1, 2, 3, 4)]
    for i, record in enumerate(seen):
        np.testing.assert_array_equal(record.metrics["wins"], result.metrics["wins"][i])
        np.testing.assert_array_equal(record.env_steps, 128 * (i + 1))
