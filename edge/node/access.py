"""Who may use an outlet or answer an inlet: what `--allow` says, as a function of the peer."""

from __future__ import annotations

import re
from collections.abc import Callable

from edge.identity.history import Identifier
from edge.node.fields import identifier

Allows = Callable[[Identifier | None], bool]
_IDENTIFIER = re.compile(r"I[0-9a-fA-F]{64}")


def everybody(_peer: Identifier | None) -> bool:
    """Without a policy; see Node.exposure for where that is refused."""
    return True


def reader(text: str | None) -> Allows:
    """What the policy `text` says: an identifier alone, or an expression. Raises ConfigError."""
    if text is None:
        return everybody
    if _IDENTIFIER.fullmatch(text.strip()):
        wanted = identifier(text)
        return lambda peer: peer is not None and peer == wanted
    return _expression(text)


def named(text: str | None) -> list[Identifier]:
    """The identifiers that a policy speaks of."""
    return [identifier(found) for found in _IDENTIFIER.findall(text or "")]


def _expression(text: str) -> Allows:
    from edge.policy import evaluate, expr  # noqa: PLC0415 - most nodes name identifiers only

    parsed = expr.parse(text)

    def allows(peer: Identifier | None) -> bool:
        attributes = {"subject.identifier": str(peer)} if peer is not None else {}
        return evaluate.evaluate(parsed, attributes)

    return allows
