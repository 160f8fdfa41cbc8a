"""Kill runs at random moments, resume them, and see that they end with the bits of one that was never killed.

    python benchmarks/sigkill.py --count 100 --log sigkill.log

Every learner, a monolithic agent and a population take turns. Each trial is one run in a process of its own, killed
with SIGKILL at a random moment between its start and its end, and resumed. Checkpoints are written after every chunk,
so that many kills fall into a write. The log has a line per kill.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = "--steps 8192 --instances 8 --horizon 16 --minibatch 32 --log-every 1 --seeds 2 --checkpoint-every 0 --json"
RUNS = {
    "ppo": ["Chain-v0", "--learner", "ppo"],
    "valuation": ["Chain-v0", "--learner", "valuation"],
    "reinforce": ["Bandit-v0", "--learner", "reinforce"],
    "monolith": ["Chain-v0", "--agent", "monolith"],
}
KINDS = [*RUNS, "population"]


def population(folder: Path) -> None:
    """Grow a small market of rules in ``folder``, or go on with it, and print a digest of how it ended."""
    import dataclasses  # noqa: PLC0415  only the child needs all this

    from jaxmarket.checkpoint import digest, flatten  # noqa: PLC0415
    from jaxmarket.experiments.bucket_brigade import accuracy, plans  # noqa: PLC0415
    from jaxmarket.experiments.economies import grow  # noqa: PLC0415

    plan = plans("multiplexer", quick=True)[0]
    market = dataclasses.replace(plan.market, capacity=64, instances=4)
    plan = dataclasses.replace(plan, market=market, living=32, rounds=600, chunks=50)
    (grown,) = grow([plan], accuracy, seeds=2, seed=0, label="", shown=False, folder=folder).values()
    arrays = flatten({"economy": grown.economy, "rounds": grown.rounds, "measured": grown.measured})
    print(json.dumps({"params_sha256": digest(arrays)}))


def command(kind: str, folder: Path, *, resume: bool) -> list[str]:
    """What starts a run, or goes on with it."""
    if kind == "population":
        return [sys.executable, __file__, "--population", str(folder)]
    given = ["--resume", str(folder), "--checkpoint-every", "0", "--json"]
    begun = [*RUNS[kind], *SMALL.split(), "--out", str(folder)]
    return [sys.executable, "-P", "-m", "jaxmarket", "train", *(given if resume else begun)]


def finish(kind: str, folder: Path, *, resume: bool) -> str:
    """Let a run come to its end: its digest."""
    done = subprocess.run(command(kind, folder, resume=resume), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} in {folder}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])["params_sha256"]


def steps(folder: Path) -> int | None:
    """The last complete checkpoint in a run's folder."""
    return max((int(seal.parent.name) for seal in folder.rglob("[0-9]*/sha256")), default=None)


def kill(kind: str, folder: Path, seconds: float) -> str | None:
    """Start a run and kill it after so long: where it was; None if it had ended by then."""
    child = subprocess.Popen(command(kind, folder, resume=False), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    child.kill()
    if child.wait() != -signal.SIGKILL:
        return None
    last, unfinished = steps(folder), any(folder.rglob("*orbax-checkpoint-tmp*"))
    if (folder / "networks").exists():
        return "while it wrote its results"
    where = "before its folder" if not folder.exists() else "before a checkpoint" if last is None else f"after {last}"
    return where + (", within a write" if unfinished else "")


def main() -> None:
    """Do it ``--count`` times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--population", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.population:
        return population(options.population)
    rng, lines, exact = random.Random(options.seed), [], 0
    with tempfile.TemporaryDirectory() as work:
        # Compiled once: otherwise most kills would fall into the compiler.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{work}/cache"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        wanted, lasts = {}, {}
        for kind in options.kinds:
            finish(kind, Path(work, f"{kind}-cold"), resume=False)
            began = time.monotonic()
            wanted[kind] = finish(kind, Path(work, f"{kind}-whole"), resume=False)
            lasts[kind] = time.monotonic() - began
        kills = 0
        while kills < options.count:
            kind = options.kinds[kills % len(options.kinds)]
            folder, moment = Path(work, "killed"), rng.uniform(0, lasts[kind])
            where = kill(kind, folder, moment)
            if where is not None:
                kills += 1
                # Before its settings were there nothing can be resumed: it is started again.
                again = (folder / "config.json").exists() or kind == "population"
                same = finish(kind, folder, resume=again) == wanted[kind]
                exact += same
                verdict = "same bits" if same else "OTHER BITS"
                lines.append(f"{kills:4} {kind:10} killed at {moment:6.2f} of {lasts[kind]:6.2f} s, {where}: {verdict}")
                print(lines[-1], flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    lines.append(f"{exact} of {kills} bit-exact endings")
    print(lines[-1])
    if options.log:
        options.log.write_text("\n".join(lines) + "\n")
    sys.exit(exact < kills)


if __name__ == "__main__":
    main()
