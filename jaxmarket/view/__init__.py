"""Terminal tables, plots, and pictures of environments."""
