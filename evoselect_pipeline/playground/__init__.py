"""The built-in world: tasks a tiny model does poorly, rows to teach it, and how it was trained."""
