"""``python -m jaxmarket``."""

from jaxmarket.cli import main

main()
