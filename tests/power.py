"""Mutation tests: each fault is planted in a copy of a revision, and the default tests of its file are run.

    python tests/power.py                 # the working tree's HEAD
    python tests/power.py 28a2ec2         # before modules moved into packages

Prints for each fault the first test that fails, or that it escaped. Every test process is a fork of this one,
which has imported what they all need.
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax_environment
import pytest

jax_environment.set_defaults()

AUCTIONS = (
    ("jaxmarket/auctions.py", "tests/test_auctions.py"),
    ("jaxmarket/auctions.py", "tests/core/test_auctions.py"),
)
SETTLEMENT = (
    ("jaxmarket/settlement.py", "tests/test_settlement.py"),
    ("jaxmarket/settlement.py", "tests/core/test_settlement.py"),
)
SOCIETY = (
    ("jaxmarket/society.py", "tests/test_society.py tests/test_parity.py"),
    ("jaxmarket/society.py", "tests/core/test_society.py tests/core/test_parity.py"),
)
ROLLOUTS = (
    ("jaxmarket/rollouts.py", "tests/test_rollouts.py tests/test_parity.py"),
    ("jaxmarket/rollouts.py", "tests/core/test_rollouts.py tests/core/test_parity.py"),
)
METRICS = (("jaxmarket/metrics.py", "tests/test_metrics.py"), ("jaxmarket/metrics.py", "tests/core/test_metrics.py"))
POLICIES = (
    ("jaxmarket/policies.py", "tests/test_policies.py"),
    ("jaxmarket/policies.py", "tests/core/test_policies.py"),
)
TRAINING = "tests/test_training.py", "tests/training/test_training.py"
DEEP = "tests/test_population.py", "tests/deep_market/test_demographics.py"

# (files and their tests, before and now), line before -> fault, and the same now where the line has changed
FAULTS = [
    (
        AUCTIONS,
        ("(one[0] > other[0])", "(one[0] >= other[0])"),
        ("(first[0] > second[0])", "(first[0] >= second[0])"),
    ),
    (AUCTIONS, ("eligible & ~own, bids", "~own, bids")),
    (AUCTIONS, ("bids.shape) & jnp.isfinite(bids)", "bids.shape)")),
    (
        SETTLEMENT,
        ("jnp.where(t.terminated, 0, jnp.where(cut, estimate, following))", "jnp.where(cut, estimate, following)"),
    ),
    (
        SETTLEMENT,
        ("jnp.where(share > 0, share * ahead, 0)", "share * ahead"),
        ("jnp.where(decay > 0, decay * following, 0)", "decay * following"),
    ),
    (SETTLEMENT, ("per_bidder(-t.price, winner", "per_bidder(t.price, winner"), (", -t.price[...", ", t.price[...")),
    (
        SOCIETY,
        ("fresh.replace(wealth=onward.wealth, house=onward.house)", "fresh.replace(wealth=onward.wealth)"),
        ("fresh.replace(accounts=following.accounts)", "fresh"),
    ),
    (SOCIETY, ("return active & jnp.repeat(", "return jnp.repeat(")),
    (
        SOCIETY,
        ("jnp.maximum(outcome.winner, 0) // society.clones", "outcome.winner % society.primitives"),
        ("jnp.maximum(winner, 0) // self.clones", "winner % self.primitives"),
    ),
    (ROLLOUTS, ("steps // limit + 2", "steps // limit")),
    (ROLLOUTS, ("cut = ~terminated & (truncated", "cut = (truncated")),
    (METRICS, ("2 * rank - n - 1", "2 * rank - n")),
    (METRICS, ("jnp.maximum(floor, jnp.abs(q).max())", "jnp.abs(q).max()")),
    (
        tuple(("jaxmarket/learners/ppo.py", tests) for tests in TRAINING),
        ("jnp.where(advantage > 0, ratio <=", "jnp.where(advantage < 0, ratio <="),
    ),
    (POLICIES, ("(self.b - 1) * log_rest", "self.b * log_rest")),
    (POLICIES, ("self.a / (self.a + self.b)", "self.b / (self.a + self.b)")),
    (
        (("jaxmarket/population.py", DEEP[0]), ("jaxmarket/deep_market/demographics.py", DEEP[1])),
        ("p.wealth <= terms.bankruptcy", "p.wealth < terms.bankruptcy"),
    ),
    (
        (
            ("jaxmarket/equilibria.py", "tests/test_equilibria.py"),
            ("jaxmarket/wide_market/equilibrium.py", "tests/wide_market/test_solvers.py"),
        ),
        ("return bought + holdings * (unsold", "return bought + (unsold"),
    ),
    (
        (("jaxmarket/keys.py", "tests/test_keys.py"), ("jaxmarket/keys.py", "tests/core/test_keys.py")),
        (" | 1 << 31", ""),
    ),
    (
        (
            ("jaxmarket/checkpoint.py", "tests/test_checkpoint.py"),
            ("jaxmarket/runs/checkpoint.py", "tests/runs/test_checkpoint.py"),
        ),
        ('raise ValueError("its content does not match its digest")', "pass"),
    ),
]


def first_failure(tree: Path, tests: list[str]) -> str:
    """The first default test in these files that fails, or an empty string; run in a separate process."""
    log = tree / "power.log"
    child = os.fork()
    if not child:
        os.chdir(tree)
        sys.path[:0] = [str(tree), str(tree / "tests")]
        import jaxmarket  # noqa: PLC0415

        assert jaxmarket.__file__.startswith(str(tree)), jaxmarket.__file__
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        arguments = ["-x", "-q", "-n0", "-pno:cacheprovider"]  # the rest as in pyproject.toml
        os._exit(int(pytest.main([*arguments, *tests])))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1):
        raise SystemExit(f"{' '.join(tests)}: pytest ended with exit code {code}")
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", log.read_text(), re.MULTILINE)[0] if code else ""


def main(revision: str = "HEAD", *numbers: str) -> None:
    """Plant every fault, or those with the given numbers, in a copy of the revision."""
    for name in ("chex", "flax.linen", "hypothesis", "jax", "optax", "scipy.stats"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        archive = subprocess.run(["git", "archive", revision], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        now = (tree / "jaxmarket/deep_market").is_dir()
        for number, (places, *changes) in enumerate(FAULTS):
            if numbers and str(number) not in numbers:
                continue
            (file, tests), (line, fault) = places[now], changes[now and len(changes) - 1]
            path, start = tree / file, time.monotonic()
            sound = path.read_text()
            if sound.count(line) != 1:
                raise SystemExit(f"{file}: expected one {line!r}, got {sound.count(line)}")
            path.write_text(sound.replace(line, fault))
            failed = first_failure(tree, tests.split())
            path.write_text(sound)
            seconds = round(time.monotonic() - start)
            print(f"{number:2} {file}: {line} -> {fault}: {failed or 'ESCAPED'} ({seconds} s)")


if __name__ == "__main__":
    main(*sys.argv[1:])
