"""Experiments that are killed at a random moment and started again end with the same files, byte by byte."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from jaxmarket.experiments import EXPERIMENTS

QUICKEST = ("neural-bucket-brigade",)


def reproduction(name, folder):
    command = [sys.executable, "-m", "jaxmarket", "reproduce", name, "--quick", "--seeds", "2", "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finished(process):
    error = process.communicate(timeout=1800)[1]
    assert process.returncode == 0, error.decode()[-2000:]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".json", ".txt")}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in QUICKEST else pytest.mark.full) for name in EXPERIMENTS],
)
def test_a_killed_experiment_ends_with_the_same_files(name, tmp_path):
    finished(reproduction(name, tmp_path / "warm"))  # compiles, so that a kill does not always meet a compilation
    began = time.monotonic()
    finished(reproduction(name, tmp_path / "whole"))
    whole, attempts = time.monotonic() - began, 0
    rng = random.Random(name)
    while attempts < 5:
        attempts += 1
        process = reproduction(name, tmp_path / "killed")
        time.sleep(rng.uniform(0.2, 0.9) * whole)
        if process.poll() is not None:  # it was faster this time
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if any((tmp_path / "killed" / "conditions").glob("*")):  # something was finished
            break
    finished(reproduction(name, tmp_path / "killed"))
    assert files(tmp_path / "killed") == files(tmp_path / "whole") == files(tmp_path / "warm")
