"""The benchmark `compile` as a script; same options as `jaxmarket bench compile`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "compile", *sys.argv[1:]])
