"""Versioned data, which is what gets signed, and structures cut into the bytes they arrived in."""

from edge.errors import DecodeError
from edge.wire import cbor

HASH_BYTES = 32
VERSION = 1


def versioned_data(kind: int, body: list[object]) -> bytes:
    """`[version, type, bytes]` around `body`: the bytes to sign (02 §2.1)."""
    return cbor.encode([VERSION, kind, cbor.encode(body)])


def read_versioned(data: bytes, kind: int) -> list[cbor.Value]:
    """What versioned data holds: five items, be it a change, an attestation or a credential.
    Another version or type is not ours (02 §2.1)."""
    version, found, body = read_structure(data, 3)[:3]
    if cbor.as_int(version, 255) != VERSION or cbor.as_int(found, 255) != kind:
        raise DecodeError(f"versioned data of version {VERSION} and type {kind} was expected")
    return read_structure(cbor.as_bytes(body), 5)[:5]


def read_structure(data: bytes, minimum: int) -> list[cbor.Value]:
    """An array of at least so many items. Whatever follows it is ignored (02 §2)."""
    return cbor.as_list(cbor.decode_prefix(data)[0], minimum)


def items(data: bytes) -> list[bytes]:
    """The encodings of the items of an array, as they arrived: what is verified or kept is never
    encoded again."""
    count, position = _array_head(data)
    found: list[bytes] = []
    while len(found) != count and not (count is None and data[position : position + 1] == b"\xff"):
        _, end = cbor.decode_prefix(data, position)
        found.append(data[position:end])
        position = end
    return found


def _array_head(data: bytes) -> tuple[int | None, int]:
    """How many items, None if a break will tell, and where the first one begins."""
    major, info = divmod(data[0], 32) if data else (None, 0)
    if major != cbor.ARRAY or 27 < info < 31:
        raise DecodeError("an array was expected")
    if info == 31:
        return None, 1
    if info < 24:
        return info, 1
    end = 1 + (1 << (info - 24))
    if len(data) < end:
        raise DecodeError("an array was expected")
    return int.from_bytes(data[1:end], "big"), end
