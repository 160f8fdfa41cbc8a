"""`jaxmarket bench train` as a script: `python benchmarks/train.py [--quick] [--json] [--out DIR] [--cores N]`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "train", *sys.argv[1:]])
