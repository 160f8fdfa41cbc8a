"""Terminal tables, plots, and pictures of environments."""

__all__: list[str] = []
