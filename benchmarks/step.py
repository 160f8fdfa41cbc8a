"""`jaxmarket bench step` as a script: `python benchmarks/step.py [--quick] [--json] [--out DIR] [--cores N]`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "step", *sys.argv[1:]])
