"""A vault in a process of its own: its code may crash or hang there, and its PIN stays there."""
