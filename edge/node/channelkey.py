"""A kept channel key: the X25519 key and its attestation, sealed, so that a node that starts again
presents the same static key, and needs its vault only when the attestation is to be renewed.

The default is another: a fresh key per start, of which nothing is at rest.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from edge.channel.handshake import Presentation
from edge.channel.noise import public_key
from edge.errors import DecodeError, TrustError
from edge.events import event
from edge.identity.history import ChangeHistory
from edge.identity.purpose import Attestation
from edge.node.sealed import Sealed
from edge.node.store import Store
from edge.wire import cbor

log = logging.getLogger("edge.sealed")

SETTING = "keep_channel_key"
"""Among the settings of the node; set by `node create --keep-channel-key`."""
KEY = 32


class ChannelKey(NamedTuple):
    """What was kept: the secret, and what it was last attested by."""

    secret: bytes
    attestation: Attestation

    @classmethod
    def of(cls, presentation: Presentation) -> ChannelKey:
        return cls(presentation.secret, presentation.attestation)

    def encode(self) -> bytes:
        return cbor.encode([self.secret, self.attestation.encoded])

    @classmethod
    def decode(cls, data: bytes) -> ChannelKey:
        """DecodeError where it is none."""
        secret, attestation = cbor.as_list(cbor.decode(data), 2)[:2]
        return cls(cbor.as_bytes(secret, KEY), Attestation.decode(cbor.as_bytes(attestation)))

    def presentation(self, history: ChangeHistory, now: int) -> Presentation | None:
        """What to present without asking the vault; None where the attestation is over, or by a key
        that `history` has replaced."""
        try:
            self.attestation.verify(history, now)
        except TrustError as error:
            log.info(
                "the kept channel key is to be attested anew: %s",
                error,
                extra=event("channel-key-unusable", error),
            )
            return None
        if self.attestation.channel_key != public_key(self.secret):
            return None
        return Presentation(history, self.attestation, self.secret)


def load(store: Store, sealed: Sealed, node: str) -> ChannelKey | None:
    """What the node kept; None where there is nothing, or nothing that can be read, which is
    replaced. TrustError where the record was changed."""
    kept = sealed.get(store, _name(node))
    try:
        return None if kept is None else ChannelKey.decode(kept)
    except DecodeError as error:
        log.warning(
            "the kept channel key of %s is of no use: %s",
            node,
            error,
            extra=event("channel-key-unusable", error),
        )
        return None


def keep(store: Store, sealed: Sealed, node: str, presentation: Presentation) -> None:
    sealed.put(store, _name(node), ChannelKey.of(presentation).encode(), node=node)


def _name(node: str) -> str:
    return f"channel key of node {node}"
