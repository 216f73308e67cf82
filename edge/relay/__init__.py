"""Relays: an address that forwards to whoever registered it, and keeping our registration alive."""
