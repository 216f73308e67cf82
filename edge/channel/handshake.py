"""The two ends of the handshake that opens a secure channel (02 §6).

Every message is worked on in a copy of the state, which replaces the state only when all of it went
well: a forged message changes nothing, and the genuine one is accepted after it (02 §6.7).
"""

from typing import NamedTuple

from edge.channel.noise import Handshake
from edge.channel.trust import Trust
from edge.errors import DecodeError, HandshakeError, StateError, TrustError
from edge.identity.history import ChangeHistory
from edge.identity.known import Known, Verdict
from edge.identity.purpose import Attestation
from edge.identity.versioned import items
from edge.wire import cbor

MAX_MESSAGE = 65_535
"""A handshake message is no longer than this, in either direction (02 §6.1)."""


class Presentation(NamedTuple):
    """How we present ourselves: made ahead, so that no handshake waits for the identity key.
    `secret` is the X25519 key that `attestation` attests; `credential` goes out as it is."""

    history: ChangeHistory
    attestation: Attestation
    secret: bytes
    credential: bytes | None = None

    @property
    def payload(self) -> bytes:
        """`[history, attestation, [credential]]`; at most one credential (02 §6.2)."""
        credentials = [] if self.credential is None else [cbor.Raw(self.credential)]
        return cbor.encode(
            [cbor.Raw(self.history.encoded), cbor.Raw(self.attestation.encoded), credentials]
        )


class Established(NamedTuple):
    """What a handshake yields. `peer_verdict` says if the peer's history is to be persisted;
    `credentials` are as they arrived, not verified (02 §6.6, 6)."""

    seal_key: bytes
    open_key: bytes
    peer: ChangeHistory
    peer_verdict: Verdict
    credentials: tuple[bytes, ...]
    attested_at: int
    """When the peer attested its key: proof that it is at least that late."""


class _Peer(NamedTuple):
    history: ChangeHistory
    credentials: tuple[bytes, ...]
    attested_at: int


class _End:
    """What the two ends have in common: who we are, and how the peer proves who it is."""

    def __init__(
        self, presentation: Presentation, trust: Trust, known: Known, ephemeral: bytes
    ) -> None:
        self._presentation = presentation
        self._trust = trust
        self._known = known
        self.established: Established | None = None
        self._noise: Handshake | None = Handshake(
            initiator=isinstance(self, Initiator),
            static=presentation.secret,
            static_public=presentation.attestation.channel_key,
            ephemeral=ephemeral,
        )

    def _checkpoint(self, message: bytes) -> Handshake:
        """A copy of the state to read `message` on."""
        if self._noise is None:
            raise HandshakeError("the handshake is over")
        if len(message) > MAX_MESSAGE:
            raise HandshakeError("the handshake message is too long")
        return self._noise.copy()

    def _write(self, noise: Handshake) -> bytes:
        message = noise.write(self._presentation.payload)
        if len(message) > MAX_MESSAGE:
            raise HandshakeError("our handshake message would be too long")
        return message

    def _prove(self, payload: bytes, static: bytes, now: int, allow_future: bool) -> _Peer:
        """Who is it? The numbers are the steps of 02 §6.6."""
        # 1. Decode.
        history, attestation, credentials = _read_payload(payload)
        # 2. The history holds, and is not behind the one we know. (It is kept only at the end.)
        history.verify()
        self._known.check(history)
        # 3. The peer attests a key...
        attestation.verify(history, now, allow_future=allow_future)
        # 4. ...and that is the key of this handshake.
        if attestation.channel_key != static:
            raise HandshakeError("the attested key is not the key of this handshake")
        # 5. It is one that we talk to.
        if not self._trust(history.identifier):
            raise TrustError(f"{history.identifier} is not trusted here")
        # 6. Credentials are the caller's affair: a bad one does not close the channel.
        return _Peer(history, credentials, attestation.created_at)

    def _establish(self, seal_key: bytes, open_key: bytes, peer: _Peer) -> None:
        """The last step: keep what was proved and drop the keys of the handshake."""
        verdict = self._known.learn(peer.history)
        self.established = Established(
            seal_key, open_key, peer.history, verdict, peer.credentials, peer.attested_at
        )
        self._noise = None


class Initiator(_End):
    """first(), then receive() message 2 and send what it returns."""

    _first: bytes | None = None

    def first(self) -> bytes:
        """Message 1: our ephemeral key."""
        if self._first is None:
            noise = self._checkpoint(b"")
            self._first = noise.write(b"")
            self._noise = noise
        return self._first

    def receive(self, data: bytes, now: int, *, allow_future: bool = False) -> bytes:
        """Message 3, if `data` is a message 2 from a peer that we trust; otherwise
        HandshakeError or TrustError, nothing to send and nothing changed."""
        if self._first is None:
            raise StateError("message 2 before message 1")
        noise = self._checkpoint(data)
        payload = noise.read(data)
        peer = self._prove(payload, noise.remote_static, now, allow_future)
        message = self._write(noise)
        k1, k2 = noise.state.split()
        self._establish(seal_key=k2, open_key=k1, peer=peer)
        return message


class Responder(_End):
    """receive() message 1, send what it returns, receive() message 3."""

    _answered = False

    def receive(self, data: bytes, now: int, *, allow_future: bool = False) -> bytes | None:
        """Message 2 after message 1, None after message 3; otherwise HandshakeError or TrustError
        and nothing changed. The answer to message 1 costs three agreements and no signature."""
        noise = self._checkpoint(data)
        payload = noise.read(data)
        if not self._answered:
            message = self._write(noise)
            self._noise, self._answered = noise, True
            return message
        peer = self._prove(payload, noise.remote_static, now, allow_future)
        k1, k2 = noise.state.split()
        self._establish(seal_key=k1, open_key=k2, peer=peer)
        return None


def _read_payload(payload: bytes) -> tuple[ChangeHistory, Attestation, tuple[bytes, ...]]:
    try:
        parts = items(payload)
        if len(parts) < 3:
            raise DecodeError("three items were expected")
        return ChangeHistory.decode(parts[0]), Attestation.decode(parts[1]), tuple(items(parts[2]))
    except DecodeError as error:
        raise HandshakeError(f"the handshake payload does not decode: {error}") from error
