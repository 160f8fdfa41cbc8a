"""The benchmark `roofline` as a script; same options as `jaxmarket bench roofline`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "roofline", *sys.argv[1:]])
