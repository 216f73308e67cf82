"""Policies: who may use which resource of this node, by its name, else by its type (05 §3.6).

Asked when something opens, and again when what the authority says of a peer changes or a policy does;
never for each record. Every refusal is logged with the clause that decided.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from edge.authority.rights import RELAY
from edge.errors import ConfigError
from edge.events import event
from edge.identity.history import Identifier
from edge.node.members import Members
from edge.policy import expr
from edge.policy.evaluate import decide
from edge.policy.explain import explain
from edge.policy.values import TYPES, Expr, Name, call, text

log = logging.getLogger("edge.policy")

ACTION = "handle_message"
"""The only one there is (05 §3.1)."""
HAS_CREDENTIAL = call("=", Name("subject.has_credential"), True)
"""Of every type, on a node with an authority, where nothing else was said."""
REMEMBERED = 4096
"""Peers of whom decisions need not be made again, and refusals not be logged again."""

Allows = Callable[[Identifier | None], bool]
Watcher = Callable[[Identifier | None], None]


class Decision(NamedTuple):
    """`reason` says why not, and which policy decided."""

    allowed: bool
    reason: str = ""


class Policy(NamedTuple):
    """Of the resource `resource`, or of the type; the other one is None."""

    resource: str | None
    type: str | None
    expression: Expr


class Policies:
    """The policies of one node."""

    def __init__(self, members: Members) -> None:
        self.refused = 0
        self._members = members
        self._names: dict[str, Expr] = {}
        self._types: dict[str, Expr] = {}
        self._watchers: list[Watcher] = []
        self._made: dict[Identifier | None, dict[tuple[str, str], Decision]] = {}
        members.watch(self._changed)

    # -- what they are

    def list(self) -> list[Policy]:
        """Those of names first."""
        named = [Policy(name, None, one) for name, one in sorted(self._names.items())]
        return named + [Policy(None, kind, one) for kind, one in sorted(self._of_types().items())]

    def find(self, *, resource: str | None = None, kind: str | None = None) -> Expr | None:
        if resource is not None:
            return self._names.get(resource)
        return self._of_types().get(kind or "")

    def set(self, policy: Policy) -> None:
        if policy.resource is not None:
            self._names[policy.resource] = policy.expression
        elif policy.type is not None:
            self._types[check_type(policy.type)] = policy.expression
        self._changed()

    def remove(self, *, resource: str | None = None, kind: str | None = None) -> bool:
        """Whether there was one. What holds then is what would hold had it never been set."""
        gone = self._names.pop(resource, None) if resource else self._types.pop(kind or "", None)
        if gone is not None:
            self._changed()
        return gone is not None

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` with the peer that may be allowed now and was not, or the other way round;
        with None where that may be anybody."""
        self._watchers.append(watcher)

    # -- what they say

    def guarded(self, kind: str, name: str) -> bool:
        """Whether not everybody may use it."""
        return self._applying(kind, name) is not None

    def allows(self, kind: str, name: str) -> Allows:
        """The question, for one resource. Each refusal is counted, and logged when it is a new one."""

        def allowed(peer: Identifier | None) -> bool:
            found = self._made.get(peer, {}).get((kind, name))
            if found is None:
                found = self.decide(kind, name, peer)
                self._remember(kind, name, peer, found)
            self.refused += not found.allowed
            return found.allowed

        return allowed

    def decide(
        self,
        kind: str,
        name: str,
        peer: Identifier | None,
        supposed: Mapping[str, str] | None = None,
    ) -> Decision:
        """May `peer` use the resource? None is somebody without a channel. `supposed`: if the
        authority said this of it."""
        applying = self._applying(kind, name)
        if applying is None:
            return Decision(True)
        where, policy = applying
        if peer is None:
            return Decision(False, f"{where}: nobody is proved to be there")
        environment = self._environment(name, peer, supposed)
        if decide(policy, environment).allowed:
            return Decision(True)
        return Decision(False, f"{where}: {explain(policy, environment)}")

    def may_relay(self, peer: Identifier | None, name: str) -> bool:
        """Whether `peer` may register the relay `name` here (05 §1.10)."""
        if not self.allows("relay", "forwarding_service")(peer):
            return False
        if self._members.authority is None:
            return True
        right = (self._members.attributes(peer) or {}).get(RELAY)
        return right in ("*", name)

    # -- how

    def _of_types(self) -> dict[str, Expr]:
        if self._members.authority is None:
            return self._types
        return dict.fromkeys(TYPES, HAS_CREDENTIAL) | self._types

    def _applying(self, kind: str, name: str) -> tuple[str, Expr] | None:
        if name in self._names:
            return f"the policy of {name}", self._names[name]
        of_type = self._of_types().get(kind)
        return None if of_type is None else (f"the policy of every {kind}", of_type)

    def _environment(
        self, name: str, peer: Identifier, supposed: Mapping[str, str] | None
    ) -> Mapping[str, Expr]:
        found: dict[str, Expr] = {"resource.id": name, "action.id": ACTION}
        said = supposed if supposed is not None else self._members.attributes(peer)
        found |= {f"subject.{key}": value for key, value in (said or {}).items()}
        found["subject.identifier"] = str(peer)
        if self._members.authority is not None:
            found["subject.has_credential"] = said is not None
        return found

    def _remember(self, kind: str, name: str, peer: Identifier | None, decision: Decision) -> None:
        if len(self._made) >= REMEMBERED:
            self._made.clear()
        self._made.setdefault(peer, {})[kind, name] = decision
        if not decision.allowed:
            log.warning(
                "%s %s: %s is refused by %s",
                kind,
                name,
                peer or "nobody",
                decision.reason,
                extra=event("portal-refused", resource=name, kind=kind, peer=peer),
            )

    def _changed(self, peer: Identifier | None = None) -> None:
        """Something else is said of this peer; or, for None, by a policy of ours."""
        if peer is None:
            self._made.clear()
        else:
            self._made.pop(peer, None)
        for watcher in self._watchers:
            watcher(peer)


def check_type(kind: str) -> str:
    if kind not in TYPES:
        raise ConfigError(f"{kind[:40]!r} is no type of resource", hint=", ".join(TYPES))
    return kind


def read(source: str) -> Expr:
    """The policy of a text: an identifier, the short form or the full form. Raises ConfigError."""
    return expr.parse(source.strip())


def shown(policy: Policy) -> dict[str, str]:
    """As stock shows one."""
    return {
        "resource": policy.resource or policy.type or "",
        "action": ACTION,
        "expression": text(policy.expression),
    }
