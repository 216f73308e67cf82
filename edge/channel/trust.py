"""Whom to talk to: a predicate on the peer's identifier, asked once per handshake (02 §9.1)."""

from collections.abc import Callable

from edge.identity.history import Identifier

Trust = Callable[[Identifier], bool]


def everyone(_peer: Identifier) -> bool:
    """Any peer that can prove who it is."""
    return True


def only(*identifiers: Identifier) -> Trust:
    """One of these, and nobody else."""
    return frozenset(identifiers).__contains__
