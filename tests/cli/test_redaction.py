"""What is taken out of a text, and what stays."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.cli.redaction import GONE, Redaction, is_secret_name, secrets_of

IDENTIFIER = "I" + "3f" * 32
BASE64 = st.binary(min_size=32, max_size=200).map(lambda data: b64encode(data).decode())


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("pkcs11:token=edge?module-path=/m.so&pin-value=8301", "8301"),
        ("sealed-by=pkcs11%3Atoken=e%3Fpin-value%3D8301&x=1", "8301"),
        ('{"pin": "8301"}', "8301"),
        ('"so_pin":"8301"', "8301"),
        ("PIN: 8301", "8301"),
        ("the PIN 8301 was refused", "8301"),
        ("passphrase is 'tr0ub4dor'", "tr0ub4dor"),
        ("ockam-edge hsm test --pin 8301 x", "8301"),
        ("--so-pin=8301", "8301"),
        ('{"one_time_code":"ab12"}', "ab12"),
        ("ticket: |", "|"),
        ("password = 'a b c'", "a b c"),
        ("Authorization: Basic dXNlcjpwdw==", "dXNlcjpwdw"),
        ("Authorization: Bearer abc", "abc"),
        ("proxy http://user:hunter2@proxy.example:3128/", "hunter2"),
        ("postgresql://edge:hunter2@db/x", "hunter2"),
        ("code 9f" + "9f" * 31, "9f9f"),
        ("told " + "9f" * 32, "9f9f"),
        ("-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----", "MC4CAQ"),
        ("-----BEGIN PRIVATE KEY-----\nMC4CAQ", "MC4CAQ"),
    ],
)  # fmt: skip
def test_secrets_go(text: str, secret: str) -> None:
    found = Redaction().text(text)
    assert secret not in found
    assert GONE in found


@pytest.mark.parametrize(
    "text",
    [
        f"relay r: up, with {IDENTIFIER}",
        f"peer={IDENTIFIER}, {IDENTIFIER}.",
        f"/service/{IDENTIFIER}/x",
        "pin-source=file:/etc/edge/pin",
        "pin-source=credential:ockam-edge.pin",
        '"pin": "last-try", "state": "present"',
        "the PIN was refused",
        "token 'edge' in /usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so is gone",
        "/ip4/127.0.0.1/tcp/4000/secure/api/service/forward_to_gateway/secure/api/service/outlet",
        "worker 0123456789abcdef0123456789abcdef",
        "2026-11-25T09:51:43Z WARNING edge.session: relay bad: cannot connect",
        "token abcdefghij: made by somebody, 1 uses in 600 s",
        "http://proxy.example:3128/",
        "credential_until: 2026-11-25T09:51:43Z",
    ],
)
def test_the_rest_stays(text: str) -> None:
    assert Redaction().text(text) == text


@given(BASE64)
def test_what_is_random_goes(secret: str) -> None:
    for text in (
        secret,
        f"x {secret} y",
        f"a={secret}",
        f"'{secret}'",
        f"/{secret}",
        secret.rstrip("="),
    ):
        assert secret.rstrip("=") not in Redaction().text(text)


@given(st.binary(min_size=20, max_size=200))
def test_hexadecimal_goes(secret: bytes) -> None:
    assert secret.hex() not in Redaction().text(f"got {secret.hex()}, {secret.hex().upper()}")


def test_what_is_known_goes_wherever_it_stands() -> None:
    environment = {
        "OCKAM_PIN": "blue-horse", "https_proxy": "http://u:gr%40nd-pass@p:1", "PATH": "/usr/bin",
        "PIN_SOURCE": "file:/etc/edge/pin", "ENROLLMENT_TICKET": "short", "API_TOKEN": "yellow cab",
    }  # fmt: skip
    known = list(secrets_of(environment, ["pkcs11:token=t?pin-value=green-cow"]))
    found = Redaction(known).text(
        "blue-horse gr@nd-pass gr%40nd-pass green-cow yellow cab /usr/bin"
    )
    assert found == " ".join([GONE] * 5) + " /usr/bin"


def test_a_short_secret_is_not_looked_for_everywhere() -> None:
    """Port 1234 with a hole in it would tell the PIN."""
    assert Redaction(["1234"]).text("127.0.0.1:1234") == "127.0.0.1:1234"


@pytest.mark.parametrize(
    "name", ["PIN", "OCKAM_PIN", "db-password", "API_KEY", "ENROLLMENT_TICKET"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["PIN_SOURCE", "PATH", "OCKAM_HOME", "pinned", "KEY_FILE", "codec"]
)
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text", ["1", "a-", "a_", "a.a", "pin ", "://", "I", "/a", '"pin":"', "='"]
)
def test_long_texts_take_no_time(text: str) -> None:
    """The limit of the test is what catches a pattern that takes the square of the length."""
    Redaction(["secret-1"]).text(text * 200_000)
