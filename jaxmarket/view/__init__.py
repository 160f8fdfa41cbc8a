"""What people look at: terminal tables, plots, and pictures of environments."""
