"""The benchmark `scale` as a script; same options as `jaxmarket bench scale`."""

import sys

from jaxmarket.cli import main

if __name__ == "__main__":
    main(["bench", "scale", *sys.argv[1:]])
