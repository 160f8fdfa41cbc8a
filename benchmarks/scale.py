"""`jaxmarket bench scale` as a script: `python benchmarks/scale.py [--quick] [--json] [--out DIR] [--cores N]`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "scale", *sys.argv[1:]])
