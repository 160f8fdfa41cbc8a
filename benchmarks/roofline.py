"""`jaxmarket bench roofline` as a script: `python benchmarks/roofline.py [--quick] [--json] [--out DIR] [--cores N]`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "roofline", *sys.argv[1:]])
