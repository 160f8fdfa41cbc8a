"""`jaxmarket bench compile` as a script: `python benchmarks/compile.py [--quick] [--json] [--out DIR] [--cores N]`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "compile", *sys.argv[1:]])
