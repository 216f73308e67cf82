"""The authority of a fleet: its members, the tickets that make new ones, and what it says of them."""
