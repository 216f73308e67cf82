"""What decodes and what does not, as at a Rust node (02 §2, cbor-decoding-tolerance.json)."""

from collections.abc import Callable

import pytest

from edge.channel.handshake import _read_payload
from edge.errors import DecodeError, HandshakeError
from edge.identity.credential import Credential
from edge.identity.history import ChangeHistory
from edge.wire import cbor
from tests.load import vectors
from tests.people import person

SIGNATURE = [0, [bytes(64)]]


def change_data(body: bytes) -> object:
    data = cbor.encode([1, 1, body])
    return ChangeHistory.decode(cbor.encode([[data, SIGNATURE]]))


def credential_data(body: bytes) -> object:
    attestation = person("alice").present().attestation.encoded
    data = cbor.encode([1, 3, body])
    return Credential.decode(cbor.encode([[data, SIGNATURE], cbor.Raw(attestation)]))


READERS: dict[str, Callable[[bytes], object]] = {
    "change history": ChangeHistory.decode,
    "change data": change_data,
    "credential data": credential_data,
    "handshake identity payload": _read_payload,
}
CASES = [c for c in vectors("cbor-decoding-tolerance")["cases"] if c["type"] in READERS]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['type']}: {c['case']}")
def test_tolerance(case: dict[str, str]) -> None:
    try:
        READERS[case["type"]](bytes.fromhex(case["hex"]))
    except (DecodeError, HandshakeError):
        # An empty history is refused here, and at verification there.
        assert not case["decodes"] or case["case"] == "empty history"
    else:
        assert case["decodes"]
