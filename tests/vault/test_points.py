"""The encodings that tokens disagree about."""

import pytest

pkcs11 = pytest.importorskip("pkcs11")


from vault_backends.pkcs11 import points  # noqa: E402
from vault_backends.vault import (  # noqa: E402
    Kind,
)


def test_points() -> None:
    raw32, raw65 = b"\1" * 32, b"\4" + b"\1" * 64
    assert points.point(Kind.ED25519, raw32) == raw32
    assert points.point(Kind.ED25519, b"\4\x20" + raw32) == raw32
    assert points.point(Kind.P256, raw65) == raw65
    assert points.point(Kind.P256, b"\4\x41" + raw65) == raw65
    for bad in (b"", raw32[:-1], b"\4\x21" + raw32, b"\2" + raw65[1:]):
        assert points.point(Kind.P256, bad) is None
    assert points.point(Kind.ED25519, raw65) is None


def test_signatures() -> None:
    der = bytes.fromhex("3006020101020102")
    assert points.signature(Kind.P256, der) == b"\0" * 31 + b"\1" + b"\0" * 31 + b"\2"
    for odd in (b"", b"x" * 63, bytes.fromhex("3008020101") + b"\x02\x03\0"):
        assert points.signature(Kind.P256, odd) == odd
    assert not points.verifies(Kind.P256, b"\4" + b"\0" * 64, b"x", b"\1" * 64)
    assert not points.verifies(Kind.ED25519, b"\0" * 32, b"x", b"\1" * 63)


def test_key_ids() -> None:
    assert points.key_id("identity", 2) == points.key_id("identity", 20)[:2]
    assert points.key_id("a", 20) != points.key_id("b", 20)
    assert points.key_id("a", 0) == b""
