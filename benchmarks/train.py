"""The benchmark `train` as a script; same options as `jaxmarket bench train`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "train", *sys.argv[1:]])
