"""The default wiring, cell by cell, as protocol document 01 §3.5 has it for a node without authority."""

import pytest

from edge.routing.reach import DEFAULT, OUTLETS, RELAYS, Origin, Wiring

P, C, O, U = Origin.PLAIN, Origin.CHANNEL, Origin.OUTGOING, Origin.CONTROL
TABLE = {
    b"echo": {P, C, O},
    b"uppercase": {P, C, O},
    b"api": {P, C, O},
    b"forwarding_service": {P, C},
    b"static_forwarding_service": {P, C},
    b"hop": {P},
    b"control": {U},
    b"forward_to_x": {P, C},
    b"outlet": {C},
    b"_internal.nodemanager": set(),
}


def wired() -> Wiring:
    wiring = Wiring()
    for address in DEFAULT:
        wiring.open(address)
    wiring.open(b"forward_to_x", *RELAYS)
    wiring.open(b"outlet", *OUTLETS)
    return wiring


@pytest.mark.parametrize("address", TABLE, ids=lambda a: a.decode())
@pytest.mark.parametrize("origin", Origin)
def test_every_cell(origin: Origin, address: bytes) -> None:
    assert (address in wired().sets[origin]) == (origin in TABLE[address])


def test_a_responder_is_open_wherever_its_listener_is() -> None:
    wiring = wired()
    wiring.follow(b"decryptor", b"api")
    assert [b"decryptor" in wiring.sets[o] for o in Origin] == [o in TABLE[b"api"] for o in Origin]
    wiring.shut(b"decryptor")
    assert not any(b"decryptor" in members for members in wiring.sets.values())
