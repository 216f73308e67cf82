"""Talking in secret: the handshake, the records, whom to trust. Pure."""
