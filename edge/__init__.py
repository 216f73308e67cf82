"""The ockam-edge node: secure channels, portals and relays, wire-compatible with Ockam."""

__version__ = "0.1.0"
