"""Records: counters, rekeying, the replay window and the choice of the key (02 §7)."""

import random
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.channel import record as module
from edge.channel.record import AESGCM, INTERVAL, LAST_NONCE, OVERHEAD, Opener, Sealer, next_key
from edge.errors import RecordError, StateError
from tests.load import vectors

KEY = bytes(range(32))


def sealed(count: int, key: bytes = KEY) -> list[bytes]:
    sealer = Sealer(key)
    return [sealer.seal(b"%d" % n) for n in range(count)]


def state(opener: Opener) -> list[object]:
    return [getattr(opener, name) for name in Opener.__slots__ if name != "_decrypt_into"]


def test_the_window_of_upstream() -> None:
    steps = vectors("nonce-and-key-window-upstream")["nonce_tracker"]["sequence"]
    records, opener = sealed(200), Opener(KEY)
    for step in steps:
        before = state(opener)
        if step["expect"] == "ok":
            assert opener.open(records[step["nonce"]]) == b"%d" % step["nonce"]
        else:
            with pytest.raises(RecordError):
                opener.open(records[step["nonce"]])
            assert state(opener) == before


@pytest.mark.parametrize(("table", "rekeys"), [("no_rekey_yet", 0), ("after_5_rekeys", 5)])
def test_the_keys_of_upstream(table: str, rekeys: int) -> None:
    """Upstream's test renews every 10; the same places in our intervals of 32."""
    opener = Opener(KEY)
    for one in sealed(rekeys * INTERVAL + 1):
        opener.open(one)
    for row in vectors("nonce-and-key-window-upstream")["key_tracker"][table]:
        interval, rest = divmod(row["nonce"], 10)
        offset = (interval - rekeys) * INTERVAL + (rest if rest < 9 else INTERVAL - 1)
        if row["expect"] == "reject":
            with pytest.raises(RecordError):
                opener._other_key(offset)
        elif row["expect"] == "current":
            assert 0 <= offset < INTERVAL
        else:
            fresh, _ = opener._other_key(offset)
            assert (fresh is not None) == (row["expect"] == "derive next")


@pytest.mark.parametrize("ends", [(0, 1), (1, 0)])
def test_the_records_of_the_worked_example(ends: tuple[int, int]) -> None:
    everything = vectors("secure-channel-selfmade")
    keys = everything["handshake_with_credentials"]
    transport = everything["transport_after_handshake_with_credentials"]
    direction = ["initiator->responder", "responder->initiator"][ends[0]]
    key = bytes.fromhex(keys[["initiator_to_responder_key", "responder_to_initiator_key"][ends[0]]])
    mine = [m for m in transport["messages"] if m["direction"] == direction]
    wire = {m["nonce"]: bytes.fromhex(m["ciphertext"]) for m in mine}
    plain = {m["nonce"]: bytes.fromhex(m["plaintext"]) for m in mine}
    sealer, opener = Sealer(key), Opener(key)
    for nonce in range(max(wire) + 1):
        one = sealer.seal(plain.get(nonce, b""))
        assert one == wire.get(nonce, one)
        assert opener.open(one) == plain.get(nonce, b"")
    if ends[0] == 0:
        for bad in transport["must_be_rejected_after_these"]:
            with pytest.raises(RecordError):
                opener.open(bytes.fromhex(bad["ciphertext"]))


def test_the_chain_of_keys() -> None:
    transport = vectors("secure-channel-selfmade")["transport_after_handshake_with_credentials"]
    for name in ("rekey_chain_initiator_to_responder", "rekey_chain_responder_to_initiator"):
        chain = [bytes.fromhex(key) for key in transport[name]]
        for key, following in pairwise(chain):
            assert next_key(AESGCM(key)) == following


def test_the_records_of_elixir() -> None:
    run = vectors("secure-channel-elixir-run")
    transport = vectors("secure-channel-selfmade")["transport_after_handshake_with_credentials"]
    plain = {
        ("transport_" + m["direction"].replace("->", "_to_"), m["nonce"]): bytes.fromhex(
            m["plaintext"]
        )
        for m in transport["messages"]
    }
    for name, key in (
        ("transport_initiator_to_responder", "k2_initiator_to_responder"),
        ("transport_responder_to_initiator", "k1_responder_to_initiator"),
    ):
        sealer = Sealer(bytes.fromhex(run[key]))
        wire = {m["nonce"]: bytes.fromhex(m["ciphertext"]) for m in run[name]}
        opener = Opener(bytes.fromhex(run[key]))
        for nonce in range(max(wire) + 1):
            one = sealer.seal(plain.get((name, nonce), b""))
            assert one == wire.get(nonce, one)
            opener.open(one)


def test_into_buffers_that_are_larger() -> None:
    out, plain = memoryview(bytearray(100)), memoryview(bytearray(100))
    size = Sealer(KEY).seal_into(b"hello", out)
    assert size == 5 + OVERHEAD
    assert bytes(out[:size]) == Sealer(KEY).seal(b"hello")
    assert bytes(out[size:]) == bytes(100 - size)
    assert Opener(KEY).open_into(out[:size], plain) == 5
    assert bytes(plain[:6]) == b"hello\0"


def test_no_room_is_our_own_fault_and_changes_nothing() -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    with pytest.raises(StateError):
        sealer.seal_into(b"hello", memoryview(bytearray(28)))
    assert sealer.nonce == 0
    before = state(opener)
    with pytest.raises(StateError):
        opener.open_into(sealer.seal(b"hello"), memoryview(bytearray(4)))
    assert state(opener) == before


def test_the_counter_has_an_end() -> None:
    sealer = Sealer(KEY)
    sealer._nonce, sealer._boundary = LAST_NONCE - 31, LAST_NONCE - 31
    for _ in range(31):
        sealer.seal(b"")
    for _ in range(3):
        with pytest.raises(RecordError):
            sealer.seal(b"")
    assert sealer.nonce == LAST_NONCE


def test_the_first_record_need_not_be_the_first() -> None:
    records = sealed(34)
    assert Opener(KEY).open(records[32]) == b"32"
    with pytest.raises(RecordError):
        Opener(KEY).open(records[33])


@pytest.mark.parametrize("block", [2, 15, 30])
def test_shuffled_blocks_and_then_all_again(block: int) -> None:
    dice = random.Random(block)
    records, opener = sealed(300), Opener(KEY)
    for start in range(0, 300, block):
        numbers = list(range(start, min(start + block, 300)))
        dice.shuffle(numbers)
        for n in numbers:
            assert opener.open(records[n]) == b"%d" % n
    before = state(opener)
    for one in records:
        with pytest.raises(RecordError):
            opener.open(one)
    assert state(opener) == before


@pytest.mark.parametrize("nonce", [0, 31, 32, 33, 64])
def test_a_flipped_bit_and_then_the_genuine_record(nonce: int) -> None:
    records, opener = sealed(nonce + 1), Opener(KEY)
    for one in records[:-1]:
        opener.open(one)
    before = state(opener)
    for position in range(len(records[nonce])):
        bad = bytearray(records[nonce])
        bad[position] ^= 1
        with pytest.raises(RecordError):
            opener.open(bad)
        assert state(opener) == before
    assert opener.open(memoryview(records[nonce])) == b"%d" % nonce


@pytest.mark.parametrize("nonce", [10**6, 2**64 - 1, 40 + 33, 40 + 32, 63, 64, 41])
def test_forged_nonces_cost_little_and_change_nothing(
    nonce: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, opener = sealed(42), Opener(KEY)
    for one in records[:41]:
        opener.open(one)
    before, rekeys = state(opener), []
    monkeypatch.setattr(module, "next_key", lambda c: rekeys.append(c) or next_key(c))
    with pytest.raises(RecordError):
        opener.open(nonce.to_bytes(8, "big") + bytes(40))
    assert len(rekeys) <= 1
    assert state(opener) == before
    assert opener.open(records[41]) == b"41"
    assert opener.newest == 41


def test_after_more_than_32_lost_the_direction_is_dead() -> None:
    records, opener = sealed(200), Opener(KEY)
    opener.open(records[0])
    for one in records[33:]:
        with pytest.raises(RecordError):
            opener.open(one)


def test_old_keys_are_gone() -> None:
    """02 §10, 3: of the past, a receiver holds the key of one interval and a sender of none."""
    sealer, opener = Sealer(KEY), Opener(KEY)
    for _ in range(65):
        opener.open(sealer.seal(b""))
    second = next_key(AESGCM(KEY))
    third = next_key(AESGCM(second))

    def tag(cipher: AESGCM) -> bytes:
        return cipher.encrypt(bytes(12), b"", None)

    assert tag(sealer._cipher) == tag(AESGCM(third)) == tag(opener._cipher)
    assert opener._previous is not None
    assert tag(opener._previous) == tag(AESGCM(second))


@given(st.binary(max_size=80))
def test_any_bytes_are_refused(data: bytes) -> None:
    opener = Opener(KEY)
    before = state(opener)
    with pytest.raises(RecordError):
        opener.open(data)
    assert state(opener) == before


@given(st.lists(st.integers(0, 150), max_size=120))
def test_any_order_agrees_with_the_rules_written_out(order: list[int]) -> None:
    records, opener = sealed(151), Opener(KEY)
    seen: set[int] = set()
    newest = 0
    for n in order:
        fine = n not in seen and abs(n - newest) <= 32
        if fine:
            assert opener.open(records[n]) == b"%d" % n
            seen.add(n)
            newest = max(newest, n)
        else:
            with pytest.raises(RecordError):
                opener.open(records[n])


def test_nothing_piles_up() -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    out, plain = memoryview(bytearray(124)), memoryview(bytearray(100))
    tracemalloc.start()
    try:
        for _ in range(2000):
            opener.open_into(out[: sealer.seal_into(plain, out)], plain)
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()
