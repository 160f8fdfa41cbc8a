"""The benchmark `equilibrium` as a script; same options as `jaxmarket bench equilibrium`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "equilibrium", *sys.argv[1:]])
