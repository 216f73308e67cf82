"""Framing: 01 §1.1 and §1.2, however the stream is cut."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DecodeError
from edge.wire.frame import FIRST_BUFFER, MAX_FRAME, Frames
from tests.load import vectors


def stream(*bodies: bytes) -> bytes:
    return b"\x01" + b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


def collect(frames: Frames, chunks: Iterable[bytes]) -> tuple[list[bytes], bool]:
    """The frames, and whether the stream was right to its end."""
    found: list[bytes] = []
    try:
        for chunk in chunks:
            for body in frames.feed(chunk):
                found.append(body)
    except DecodeError:
        return found, False
    return found, True


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.data())
def test_however_it_is_cut(bodies: list[bytes], data: st.DataObject) -> None:
    whole = stream(*bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    for chunks in ([whole], bytewise(whole), pieces):
        frames = Frames()
        assert collect(frames, chunks) == (bodies, True)
        assert frames.pending == 0


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    assert collect(Frames(), [data]) == collect(Frames(), bytewise(data))
    assert collect(Frames(), [b"\x01" + data]) == collect(Frames(), bytewise(b"\x01" + data))


def test_wrong_version_byte() -> None:
    frames = Frames()
    assert collect(frames, [b"\x02" + stream(b"a")[1:]]) == ([], False)
    assert collect(frames, [stream(b"a")]) == ([], False)


@pytest.mark.parametrize("size", [0, MAX_FRAME + 1, 2**32 - 1])
def test_wrong_length_after_good_frames(size: int) -> None:
    whole = stream(b"a", b"b") + size.to_bytes(4, "big") + b"later"
    for chunks in ([whole], bytewise(whole)):
        frames = Frames()
        assert collect(frames, chunks) == ([b"a", b"b"], False)
        assert collect(frames, [b"\0\0\0\1x"]) == ([], False)


def test_the_greatest_frame() -> None:
    frames = Frames()
    body = bytes(MAX_FRAME)
    assert list(frames.feed(b"\x01" + MAX_FRAME.to_bytes(4, "big"))) == []
    assert frames.pending == FIRST_BUFFER
    assert list(frames.feed(body[:-1])) == []
    assert frames.pending == MAX_FRAME
    assert [len(b) for b in frames.feed(body[-1:])] == [MAX_FRAME]


def test_a_started_frame_gets_little_memory_and_never_more_than_its_own() -> None:
    frames = Frames()
    shared = memoryview(bytearray(1024))
    assert list(frames.feed(b"\x01\x00\x00\x00\x0512")) == []
    assert frames.pending == 5
    room = frames.get_buffer(shared)
    assert len(room) == 3
    assert len(frames.get_buffer(shared)) == 3  # asking again changes nothing
    room[:3] = b"345"
    assert [bytes(b) for b in frames.filled(3)] == [b"12345"]


def test_two_connections_share_a_buffer() -> None:
    shared = memoryview(bytearray(64))
    one, two = Frames(), Frames()
    data = stream(b"first")
    for frames, piece, expected in (
        (one, data[:3], []),
        (two, data[:4], []),
        (one, data[3:], [b"first"]),
        (two, data[4:], [b"first"]),
    ):
        room = frames.get_buffer(shared)
        room[: len(piece)] = piece
        assert [bytes(b) for b in frames.filled(len(piece))] == expected
    assert one.pending == 0


def test_part_of_a_length_is_counted() -> None:
    frames = Frames()
    assert list(frames.feed(b"\x01\x00\x00")) == []
    assert frames.pending == 2


@pytest.mark.parametrize("name", ["live-relay", "live-channel", "live-kafka"])
def test_recorded_streams(name: str) -> None:
    frames = vectors(name)["frames"]
    for key in {(f.get("connection", 0), f["direction"]) for f in frames}:
        mine = [f["hex"] for f in frames if (f.get("connection", 0), f["direction"]) == key]
        whole = bytes.fromhex("".join(mine))
        found, right = collect(Frames(), [whole])
        assert right
        assert [body.hex() for body in found] == [text[8:] for text in mine[1:]]
