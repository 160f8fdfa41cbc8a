"""The benchmark `population` as a script; same options as `jaxmarket bench population`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "population", *sys.argv[1:]])
