"""Recorded runs against a Rust node of release 0.150: our handshake messages come out byte for
byte, and every record of both directions is opened or sealed again (02 §12)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from edge.channel.handshake import Established, Initiator, Presentation, Responder
from edge.channel.record import Opener, Sealer
from edge.channel.trust import only
from edge.identity.history import ChangeHistory, Identifier
from edge.identity.known import Known
from edge.identity.purpose import Attestation
from edge.identity.versioned import items
from edge.wire import cbor
from tests.load import vectors

RUNS = [
    "live-channel",
    "live-channel-p256",
    "live-channel-rotated",
    "live-respond",
    "live-inlet",
    "live-outlet",
    "live-relay",
    "live-enroll",
    "live-authority",
]
CHANNELS = [(run, n) for run in RUNS for n in range(len(vectors(run)["channels"]))]


class Frame(NamedTuple):
    """A transport message, as much of it as matters here."""

    number: int
    direction: str
    onward: list[Any]
    back: list[Any]
    payload: bytes


def frames(run: dict[str, Any]) -> Iterator[Frame]:
    for number, frame in enumerate(run["frames"]):
        data = bytes.fromhex(frame["hex"])
        if len(data) > 1:
            onward, back, payload = cbor.decode(data[4:])[:3]  # type: ignore[index]
            yield Frame(number, frame["direction"], onward, back, payload)  # type: ignore[arg-type]


def presentation(run: dict[str, Any], channel: dict[str, Any]) -> Presentation:
    """What the recorded client presented."""
    history, attestation, credentials = items(bytes.fromhex(channel["payload_sent"]))
    identity = next(i for i in run["identities"] if i["identifier"] == channel["my_identifier"])
    return Presentation(
        ChangeHistory.decode(history),
        Attestation.decode(attestation),
        bytes.fromhex(channel.get("static_x25519_secret") or identity["static_x25519_secret"]),
        next(iter(items(credentials)), None),
    )


def replay(run: dict[str, Any], channel: dict[str, Any]) -> Established:
    """Run our end of the handshake on what the peer sent; what we say must be what was said."""
    address = [0, channel["decryptor"].encode()]
    trust = only(Identifier.parse(channel["peer_identifier"]))
    ephemeral = bytes.fromhex(channel["ephemeral_x25519_secret"])
    ours = presentation(run, channel)
    assert ours.payload.hex() == channel["payload_sent"]
    said = [f.payload for f in frames(run) if f.direction == "out" and f.back[-1:] == [address]]
    heard = [f.payload for f in frames(run) if f.direction == "in" and f.onward[-1:] == [address]]
    now = run["recorded_at"]
    end: Initiator | Responder
    if channel["role"] == "initiator":
        end = Initiator(ours, trust, Known(), ephemeral)
        assert end.first() == said[0]
        assert end.receive(heard[0], now) == said[1]
    else:
        end = Responder(ours, trust, Known(), ephemeral)
        assert end.receive(_message_1(run, said[0]), now) == said[0]
        assert end.receive(heard[0], now) is None
    assert end.established is not None
    return end.established


def _message_1(run: dict[str, Any], answer: bytes) -> bytes:
    """The message that `answer` answers: the last one from where the answer goes to."""
    to = next(f for f in frames(run) if f.payload == answer)
    return next(
        f.payload
        for f in frames(run)
        if f.direction == "in" and f.number < to.number and f.back[-1:] == to.onward[-1:]
    )


@pytest.mark.parametrize(("name", "number"), CHANNELS)
def test_replay(name: str, number: int) -> None:
    run = vectors(name)
    channel = run["channels"][number]
    established = replay(run, channel)
    assert str(established.peer.identifier) == channel["peer_identifier"]
    assert established.seal_key.hex() == channel["send_key"]
    assert established.open_key.hex() == channel["receive_key"]
    (_, _, credentials) = items(bytes.fromhex(channel["peer_payload"]))
    assert list(established.credentials) == items(credentials)
    sealer, opener = Sealer(established.seal_key), Opener(established.open_key)
    payloads = {f.number: f.payload for f in frames(run)}
    for one in run["plaintexts"]:
        if one["channel"] == number:
            record, plain = payloads[one["frame"]], bytes.fromhex(one["plaintext"])
            assert int.from_bytes(record[:8], "big") == one["nonce"]
            if one["direction"] == "in":
                assert opener.open(record) == plain
            else:
                assert sealer.seal(plain) == record
