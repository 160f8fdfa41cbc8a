"""Run benchmarks by name: ``python -m benchmarks step --quick``."""

import importlib
import sys
from collections.abc import Sequence

from benchmarks import PROGRAMS, SPEED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmark, or without a name all benchmarks of speed; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    name = words.pop(0) if words and not words[0].startswith("-") else None
    if name is not None and name not in SPEED | PROGRAMS:
        names = ", ".join(SPEED | PROGRAMS)
        print(f"benchmarks: name: unknown benchmark {name!r}; choose from {names}", file=sys.stderr)
        return 2
    # `argparse` shows this name. `fuzz` and `soak` set variables that JAX reads when it is imported, so nothing imports
    # it before them.
    sys.argv[0] = " ".join(filter(None, ("python -m benchmarks", name)))
    try:
        if name in PROGRAMS:
            return importlib.import_module(f"benchmarks.{name}").main(words)
        return importlib.import_module("benchmarks.command").main(name, words)
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
