"""The benchmark `step` as a script; same options as `jaxmarket bench step`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "step", *sys.argv[1:]])
