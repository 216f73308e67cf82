"""Portals: a local byte stream joined to a route."""
