"""Noise XX against the vectors of upstream, and its edges (02 §6.1)."""

import pytest

from edge.channel.noise import (
    AESGCM,
    PROTOCOL,
    Handshake,
    SymmetricState,
    hkdf2,
    public_key,
    x25519,
)
from edge.errors import HandshakeError, StateError
from tests.load import vectors

LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


def ends(protocol: bytes = PROTOCOL) -> tuple[Handshake, Handshake]:
    keys = {k: bytes.fromhex(v) for k, v in vectors("noise-xx-upstream")["private_keys"].items()}
    return (
        Handshake(
            initiator=True,
            static=keys["initiator_static"],
            ephemeral=keys["initiator_ephemeral"],
            protocol=protocol,
        ),
        Handshake(
            initiator=False,
            static=keys["responder_static"],
            ephemeral=keys["responder_ephemeral"],
            protocol=protocol,
        ),
    )


@pytest.mark.parametrize("case", vectors("noise-xx-upstream")["cases"], ids=lambda c: c["name"])
def test_the_handshakes_of_upstream(case: dict[str, str]) -> None:
    everything = vectors("noise-xx-upstream")
    one, two = ends(bytes.fromhex(everything["protocol_name_padded_hex"]))
    assert one.state.hash.hex() == everything["initial_h"]
    for n, (sender, receiver) in enumerate([(one, two), (two, one), (one, two)], 1):
        message = sender.write(bytes.fromhex(case[f"payload{n}"]))
        assert message.hex() == case[f"message{n}"]
        assert receiver.read(message).hex() == case[f"payload{n}"]
    assert one.state.hash == two.state.hash
    assert one.state.hash.hex() == case["computed_not_upstream"]["final_h"]
    assert one.state.split() == two.state.split()
    assert one.state.split()[0].hex() == case["computed_not_upstream"]["k1"]


def test_primitives() -> None:
    v = vectors("primitives-upstream")["hkdf_two_outputs"]
    first, second = hkdf2(bytes.fromhex(v["salt"]), bytes.fromhex(v["ikm"]))
    assert (first.hex(), second.hex()) == (v["output1"], v["output2"])
    v = vectors("primitives-upstream")["aes_256_gcm"]
    iv = v["nonce_counter"].to_bytes(12, "big")
    cipher = AESGCM(bytes.fromhex(v["key"])).encrypt(
        iv, bytes.fromhex(v["plaintext"]), bytes.fromhex(v["aad"])
    )
    assert cipher.hex() == v["ciphertext_and_tag"]


def test_the_start() -> None:
    state = SymmetricState()
    assert state.chaining_key == PROTOCOL
    assert state.hash.hex() == ("c6096331ab8d033b2ab45efed418e9511b63d51e0b5a9a584086ea8b5905e752")


def test_another_name_fails_at_message_2() -> None:
    one, _ = ends()
    _, two = ends(b"OCKAM_XX_25519_AES128_GCM_SHA256")
    two.read(one.write(b""))
    with pytest.raises(HandshakeError):
        one.read(two.write(b""))


@pytest.mark.parametrize("point", LOW_ORDER)
def test_points_of_low_order(point: bytes) -> None:
    with pytest.raises(HandshakeError):
        x25519(bytes(range(32)), point)


def test_turns() -> None:
    one, two = ends()
    with pytest.raises(StateError):
        two.write(b"")
    with pytest.raises(StateError):
        one.read(bytes(32))
    two.read(one.write(b""))
    one.read(two.write(b""))
    two.read(one.write(b""))
    with pytest.raises(StateError):
        two.write(b"")


def test_a_copy_shares_nothing() -> None:
    one, two = ends()
    twin = two.copy()
    twin.read(one.write(b"P1"))
    assert two.state.hash == ends()[1].state.hash
    assert two._remote == {}


@pytest.mark.parametrize("size", [0, 31])
def test_too_short(size: int) -> None:
    with pytest.raises(HandshakeError, match="too short"):
        ends()[1].read(bytes(size))


def test_knowing_a_static_key_does_not_impersonate_others_to_it() -> None:
    """02 §10, 2: with the initiator's static key, nobody can answer it as the responder."""
    one, two = ends()
    first = one.write(b"")
    thief = Handshake(
        initiator=False,
        static=one._static,
        static_public=public_key(two._static),
        ephemeral=bytes(range(32)),
    )
    thief.read(first)
    with pytest.raises(HandshakeError):
        one.read(thief.write(b""))
