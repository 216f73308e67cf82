"""The handshake: its vectors, its order, and what it withstands (02 §6, §10)."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.channel import handshake
from edge.channel.handshake import (
    MAX_MESSAGE,
    Established,
    Initiator,
    Presentation,
    Responder,
)
from edge.channel.noise import Handshake
from edge.channel.record import Opener, Sealer
from edge.channel.trust import Trust, everyone, only
from edge.errors import (
    EdgeError,
    HandshakeError,
    ProtocolError,
    RecordError,
    StateError,
    TrustError,
)
from edge.identity.credential import Credential
from edge.identity.history import ChangeHistory
from edge.identity.known import Known, Verdict
from edge.identity.purpose import Attestation, attest_credential_key
from edge.wire import cbor
from tests.load import vectors
from tests.people import KINDS, NOW, WEEK, Person, person, seed

ALICE, BOB = person("alice"), person("bob", "p256")


def initiator(
    who: Person | Presentation = ALICE,
    trust: Trust = everyone,
    known: Known | None = None,
    ephemeral: bytes = seed("alice ephemeral"),
) -> Initiator:
    presentation = who.present() if isinstance(who, Person) else who
    return Initiator(presentation, trust, known if known else Known(), ephemeral)


def responder(
    who: Person | Presentation = BOB,
    trust: Trust = everyone,
    known: Known | None = None,
    ephemeral: bytes = seed("bob ephemeral"),
) -> Responder:
    presentation = who.present() if isinstance(who, Person) else who
    return Responder(presentation, trust, known if known else Known(), ephemeral)


def shake(one: Initiator, two: Responder) -> list[bytes]:
    """All three messages."""
    first = one.first()
    second = two.receive(first, NOW)
    assert second is not None
    third = one.receive(second, NOW)
    assert two.receive(third, NOW) is None
    return [first, second, third]


def established(end: Initiator | Responder) -> Established:
    assert end.established is not None
    return end.established


def talk(one: Initiator | Responder, two: Initiator | Responder) -> None:
    """Records pass both ways, past two changes of the key."""
    for sender, receiver in ((one, two), (two, one)):
        sealer = Sealer(established(sender).seal_key)
        opener = Opener(established(receiver).open_key)
        for n in range(70):
            assert opener.open(sealer.seal(b"%d" % n)) == b"%d" % n


# --- vectors


@pytest.mark.parametrize("name", ["handshake_without_credentials", "handshake_with_credentials"])
def test_the_worked_example(name: str) -> None:
    everything = vectors("secure-channel-selfmade")
    run, keys = everything[name], everything["private_keys"]

    def presentation(who: str) -> Presentation:
        with_credential = name == "handshake_with_credentials"
        rotated = (
            with_credential and who == "initiator" and "82825837" in run["initiator_payload"][:12]
        )
        identity = everything["identities"]["initiator_rotated" if rotated else who]
        attestation = everything["attestations"]["initiator_after_rotation" if rotated else who]
        pair = everything["credentials"][who]["credential_and_purpose_key"]
        return Presentation(
            ChangeHistory.decode(bytes.fromhex(identity["change_history"])),
            Attestation.decode(bytes.fromhex(attestation["attestation"])),
            bytes.fromhex(keys[f"{who}_static_x25519"]),
            bytes.fromhex(pair) if with_credential else None,
        )

    now = everything["verification_clock"]
    one = initiator(
        presentation("initiator"), ephemeral=bytes.fromhex(keys["initiator_ephemeral_x25519"])
    )
    two = responder(
        presentation("responder"), ephemeral=bytes.fromhex(keys["responder_ephemeral_x25519"])
    )
    assert one._presentation.payload.hex() == run["initiator_payload"]
    assert two._presentation.payload.hex() == run["responder_payload"]
    assert one.first().hex() == run["message1"]
    second = two.receive(one.first(), now)
    assert second is not None
    assert second.hex() == run["message2"]
    assert one._noise is not None
    assert two._noise is not None
    assert two._noise.state.hash.hex() == run["trace"][2]["h"]
    third = one.receive(second, now)
    assert third.hex() == run["message3"]
    assert two.receive(third, now) is None
    assert established(one).seal_key.hex() == run["initiator_to_responder_key"]
    assert established(one).open_key.hex() == run["responder_to_initiator_key"]
    assert established(two)[:2] == (established(one).open_key, established(one).seal_key)
    if name == "handshake_with_credentials":
        elixir = vectors("secure-channel-elixir-run")
        assert [m.hex() for m in (one.first(), second, third)] == [
            elixir[f"message{n}"] for n in (1, 2, 3)
        ]
        _check_credentials(everything, one, two, now)


def _check_credentials(
    everything: dict[str, dict[str, dict[str, str]]], one: Initiator, two: Responder, now: int
) -> None:
    """What the ends received is what was issued, and the authority's history vouches for it."""
    known = Known()
    authority = ChangeHistory.decode(
        bytes.fromhex(everything["identities"]["authority"]["change_history"])
    )
    known.learn(authority)
    for end in (one, two):
        (pair,) = established(end).credentials
        subject = established(end).peer.identifier
        Credential.decode(pair).verify(subject, {authority.identifier}, known, now)


# --- two ends


@pytest.mark.parametrize(("kind_one", "kind_two"), list(product(KINDS, KINDS)))
def test_every_kind_with_every_kind(kind_one: str, kind_two: str) -> None:
    alice, bob = person("alice", kind_one), person("bob", kind_two)
    one = initiator(alice, only(bob.identifier))
    two = responder(bob, only(alice.identifier))
    shake(one, two)
    assert established(one).peer == bob.history
    assert established(two).peer == alice.history
    assert established(one).peer_verdict is Verdict.NEW
    talk(one, two)


def test_a_peer_seen_again_and_a_peer_that_rotated() -> None:
    known = Known()
    verdicts = []
    for bob in (BOB, BOB, BOB.rotate(ALICE.key)):
        one = initiator(known=known)
        shake(one, responder(bob))
        verdicts.append(established(one).peer_verdict)
    assert verdicts == [Verdict.NEW, Verdict.SAME, Verdict.NEWER]


def test_a_credential_goes_along_unread() -> None:
    credential = cbor.encode([[b"not", "verified"], 3])
    one, two = initiator(ALICE.present(credential)), responder()
    shake(one, two)
    assert established(two).credentials == (credential,)
    assert established(one).credentials == ()


def test_message_1_may_carry_a_payload() -> None:
    noise = Handshake(initiator=True, static=ALICE.secret, ephemeral=seed("e"))
    two = responder()
    second = two.receive(noise.write(b"some payload"), NOW)
    assert second is not None
    noise.read(second)
    two.receive(noise.write(ALICE.present().payload), NOW)
    assert established(two).peer == ALICE.history


def test_the_typical_sizes() -> None:
    first, second, third = shake(initiator(), responder())
    assert [len(first), len(second), len(third)] == [32, 452, 387]


def test_the_first_message_is_made_once_and_the_second_needs_it() -> None:
    one = initiator()
    with pytest.raises(StateError):
        one.receive(bytes(100), NOW)
    assert one.first() == one.first()


def test_nothing_is_taken_after_the_end() -> None:
    one, two = initiator(), responder()
    messages = shake(one, two)
    before = established(one), established(two)
    for end, message in product((one, two), messages):
        with pytest.raises(HandshakeError, match="over"):
            end.receive(message, NOW)
    assert (established(one), established(two)) == before
    assert one._noise is None
    assert two._noise is None


# --- 02 §10, 1: the peer proves who it is


def other_key(who: Person) -> Presentation:
    """An attestation of another X25519 key than the one used."""
    return who.present()._replace(secret=seed("another secret"))


def credential_key(who: Person) -> Presentation:
    attestation = attest_credential_key(
        who.history, who.key.public, who.key.sign, now=NOW, lifetime=WEEK
    )
    return who.present()._replace(attestation=attestation)


def of_another(who: Person) -> Presentation:
    """Mallory's attestation of her own key, with the history of `who`."""
    mallory = person("mallory").present()
    return mallory._replace(history=who.history)


def forged(who: Person) -> Presentation:
    """An attestation that names `who`, but is signed by mallory's key."""
    mallory = replace(who, key=person("mallory").key)
    attestation = who.present().attestation
    signature = mallory.key.sign(seed("data"))
    encoded = cbor.encode([attestation.data, [0, [signature]]])
    return who.present()._replace(attestation=Attestation.decode(encoded))


def expired(who: Person) -> Presentation:
    history = who.history
    body = [history.identifier, history.latest.hash, [0, [seed("x")]], NOW, NOW - 1]
    data = cbor.encode([1, 2, cbor.encode(body)])
    number = 0 if who.key.public.kind == "ed25519" else 1
    signature = who.key.sign(sha256(data).digest())
    encoded = cbor.encode([data, [number, [signature]]])
    return who.present()._replace(attestation=Attestation.decode(encoded))


def old_key(who: Person) -> Presentation:
    """After a rotation, with the attestation of the old key."""
    return who.present()._replace(history=who.rotate(person("new").key).history)


def broken_history(who: Person) -> Presentation:
    (change,) = who.history.changes
    signature = change.signature._replace(value=bytes(64))
    encoded = cbor.encode([change._replace(signature=signature).structure()])
    return who.present()._replace(history=ChangeHistory.decode(encoded))


IMPOSTORS: list[Callable[[Person], Presentation]] = [
    other_key, credential_key, of_another, forged, expired, old_key, broken_history,
]  # fmt: skip


@pytest.mark.parametrize("impostor", IMPOSTORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["ed25519", "p256"])
def test_impostors_are_refused_and_leave_no_trace(
    impostor: Callable[[Person], Presentation], kind: str
) -> None:
    alice = person("alice", kind)
    known = Known()
    one, two = initiator(alice, known=known), responder(impostor(person("bob", kind)))
    second = two.receive(one.first(), NOW)
    assert second is not None
    with pytest.raises((HandshakeError, TrustError)):
        one.receive(second, NOW)
    two = responder(known=known)
    one = initiator(impostor(alice))
    second = two.receive(one.first(), NOW)
    assert second is not None
    with pytest.raises((HandshakeError, TrustError)):
        two.receive(one.receive(second, NOW), NOW)
    assert two.established is None
    assert known.size == 0


def test_a_payload_that_does_not_decode() -> None:
    for payload in (b"", b"\x80", b"\x01", cbor.encode([1, 2, 3]), cbor.encode([[], [], []])):
        noise = Handshake(initiator=False, static=BOB.secret, ephemeral=seed("e"))
        one = initiator()
        noise.read(one.first())
        with pytest.raises(HandshakeError, match="payload"):
            one.receive(noise.write(payload), NOW)


# --- 02 §10, 4: no message 3 without trust


def test_the_untrusted_see_no_message_3() -> None:
    known = Known()
    one, two = initiator(trust=only(ALICE.identifier), known=known), responder()
    second = two.receive(one.first(), NOW)
    assert second is not None
    with pytest.raises(TrustError, match="not trusted"):
        one.receive(second, NOW)
    assert one.established is None
    assert known.size == 0


def test_the_untrusted_are_refused_by_the_responder() -> None:
    known = Known()
    one, two = initiator(), responder(trust=only(BOB.identifier), known=known)
    second = two.receive(one.first(), NOW)
    assert second is not None
    third = one.receive(second, NOW)
    with pytest.raises(TrustError):
        two.receive(third, NOW)
    assert two.established is None
    assert known.size == 0


def test_trust_is_asked_after_the_proof_and_once() -> None:
    asked = []
    one = initiator(trust=lambda peer: not asked.append(peer))
    shake(one, responder())
    assert asked == [BOB.identifier]
    asked.clear()
    two = responder(other_key(BOB))
    one = initiator(trust=lambda peer: not asked.append(peer))
    second = two.receive(one.first(), NOW)
    assert second is not None
    with pytest.raises(HandshakeError):
        one.receive(second, NOW)
    assert asked == []


# --- 02 §10, 13: rollback


def test_rollback_and_conflict_are_refused() -> None:
    known = Known()
    new = BOB.rotate(ALICE.key)
    shake(initiator(known=known), responder(new))
    for bad in (BOB, BOB.rotate(person("somebody").key)):
        one, two = initiator(known=known), responder(bad)
        second = two.receive(one.first(), NOW)
        assert second is not None
        with pytest.raises(TrustError, match=r"older|conflict"):
            one.receive(second, NOW)
    assert known.get(BOB.identifier) == new.history


# --- 02 §10, 16: time


@pytest.mark.parametrize(
    ("now", "fine"),
    [(NOW - 60, True), (NOW - 61, False), (NOW + WEEK, True), (NOW + WEEK + 1, False)],
)
def test_the_clock(now: int, fine: bool) -> None:
    one, two = initiator(), responder()
    second = two.receive(one.first(), now)
    assert second is not None
    if fine:
        one.receive(second, now)
    else:
        with pytest.raises(TrustError):
            one.receive(second, now)
    if now < NOW:
        twin = initiator()
        twin.first()
        twin.receive(second, now, allow_future=True)
        assert twin.established


# --- 02 §6.7: messages that fail change nothing


def test_every_flipped_byte_of_message_2_and_then_the_genuine_one() -> None:
    one, two = initiator(), responder()
    second = two.receive(one.first(), NOW)
    assert second is not None
    for position in range(len(second)):
        bad = bytearray(second)
        bad[position] ^= 0x80
        with pytest.raises(HandshakeError):
            one.receive(bytes(bad), NOW)
    third = one.receive(second, NOW)
    for position in range(len(third)):
        bad = bytearray(third)
        bad[position] ^= 1
        with pytest.raises(HandshakeError):
            two.receive(bytes(bad), NOW)
    two.receive(third, NOW)
    talk(one, two)


def test_a_refused_peer_does_not_spoil_the_genuine_one() -> None:
    one, mallory, bob = (
        initiator(trust=only(BOB.identifier)),
        responder(person("mallory")),
        responder(),
    )
    false, true = mallory.receive(one.first(), NOW), bob.receive(one.first(), NOW)
    assert false is not None
    assert true is not None
    with pytest.raises(TrustError):
        one.receive(false, NOW)
    bob.receive(one.receive(true, NOW), NOW)
    talk(one, bob)


def test_replayed_messages_are_worth_nothing() -> None:
    """02 §10, 6."""
    one, two = initiator(), responder()
    first, second, third = shake(one, two)
    again = responder(ephemeral=seed("bob, later"))
    answer = again.receive(first, NOW)
    assert answer not in (None, second)
    for message in (first, second, third):
        with pytest.raises(HandshakeError):
            again.receive(message, NOW)
    fresh = initiator(ephemeral=seed("alice, later"))
    fresh.first()
    for message in (first, second, third):
        with pytest.raises(HandshakeError):
            fresh.receive(message, NOW)
    talk(one, two)


def test_reflection() -> None:
    """02 §10, 9: neither a handshake message nor a record can be sent back."""
    one = initiator()
    with pytest.raises(HandshakeError):
        one.receive(one.first(), NOW)
    two = responder()
    second = two.receive(one.first(), NOW)
    assert second is not None
    with pytest.raises(HandshakeError):
        two.receive(second, NOW)
    two.receive(one.receive(second, NOW), NOW)
    for end in (one, two):
        sealer, opener = Sealer(established(end).seal_key), Opener(established(end).open_key)
        with pytest.raises(RecordError):
            opener.open(sealer.seal(b"mine"))


def test_messages_of_two_handshakes_do_not_mix() -> None:
    one, two = initiator(), responder()
    other = initiator(ephemeral=seed("other"))
    second = two.receive(one.first(), NOW)
    other.first()
    assert second is not None
    with pytest.raises(HandshakeError):
        other.receive(second, NOW)
    strange = responder(ephemeral=seed("strange"))
    strange.receive(one.first(), NOW)
    with pytest.raises(HandshakeError):
        strange.receive(one.receive(second, NOW), NOW)


@pytest.mark.parametrize("size", [0, 1, 31])
def test_short_first_messages(size: int) -> None:
    two = responder()
    with pytest.raises(HandshakeError, match="short"):
        two.receive(bytes(size), NOW)
    shake(initiator(), two)


def test_a_point_of_low_order_gets_no_answer() -> None:
    two = responder()
    with pytest.raises(HandshakeError):
        two.receive(bytes(32), NOW)
    shake(initiator(), two)


def test_the_limit_of_length() -> None:
    two = responder()
    with pytest.raises(HandshakeError, match="too long"):
        two.receive(bytes(MAX_MESSAGE + 1), NOW)
    longest = Handshake(initiator=True, static=ALICE.secret, ephemeral=seed("e"))
    assert two.receive(longest.write(bytes(MAX_MESSAGE - 32)), NOW) is not None
    fat = cbor.encode([bytes(MAX_MESSAGE)])
    with pytest.raises(HandshakeError, match="too long"):
        responder(BOB.present(fat)).receive(initiator().first(), NOW)
    known = Known()
    one, two = initiator(ALICE.present(fat), known=known), responder()
    second = two.receive(one.first(), NOW)
    assert second is not None
    with pytest.raises(HandshakeError, match="too long"):
        one.receive(second, NOW)
    assert one.established is None
    assert known.size == 0


def test_the_answer_to_message_1_needs_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """02 §1.4: and no check of one."""
    two, first = responder(), initiator().first()

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(handshake._End, "_prove", fail)
    monkeypatch.setattr("edge.identity.keys.PublicKey.verify", fail)
    assert two.receive(first, NOW) is not None


# --- anything at all


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    one, two, waiting = initiator(), responder(), responder()
    one.first()
    waiting.receive(one.first(), NOW)
    for end in (one, waiting):
        with pytest.raises(HandshakeError):
            end.receive(data, NOW)
    try:
        two.receive(data, NOW)
    except HandshakeError:
        assert two._answered is False


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_payload(data: bytes) -> None:
    """What a peer can say inside a message that does decrypt."""
    noise = Handshake(initiator=False, static=BOB.secret, ephemeral=seed("e"))
    one = initiator()
    noise.read(one.first())
    with pytest.raises(HandshakeError):
        one.receive(noise.write(data), NOW)


@settings(max_examples=100)
@given(st.data())
def test_any_damage_to_a_payload(data: st.DataObject) -> None:
    payload = bytearray(BOB.present().payload)
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    noise = Handshake(initiator=False, static=BOB.secret, ephemeral=seed("e"))
    one = initiator()
    noise.read(one.first())
    try:
        one.receive(noise.write(bytes(payload)), NOW)
    except (ProtocolError, TrustError):
        assert one.established is None


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=12))
def test_any_order_of_messages(steps: list[tuple[int, int]]) -> None:
    """Two handshakes at once, each message to anybody in any order: only our own errors, and both
    can still be completed or are complete."""
    ones = [initiator(ephemeral=seed("a")), initiator(ephemeral=seed("b"))]
    twos = [responder(ephemeral=seed("c")), responder(ephemeral=seed("d"))]
    ends: list[Initiator | Responder] = [*ones, *twos]
    pool = [one.first() for one in ones]
    for whom, which in steps:
        try:
            answer = ends[whom].receive(pool[which % len(pool)], NOW)
        except EdgeError as error:
            assert isinstance(error, HandshakeError)  # noqa: PT017
        else:
            if answer is not None:
                pool.append(answer)
    for end in ends:
        if end.established:
            keys = established(end)
            partner = [e for e in ends if e.established and e.established.seal_key == keys.open_key]
            assert len(partner) <= 1
