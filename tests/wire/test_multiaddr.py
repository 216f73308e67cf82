"""Multi-addresses: 01 §6.1 to §6.4, and any text and any bytes at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError, DecodeError
from edge.wire.multiaddr import Multiaddr

EXAMPLES = {
    "/ip4/127.0.0.1/tcp/4000": "047f000001060fa0",
    "/ip6/::1/tcp/4000": "2900000000000000000000000000000001060fa0",
    "/dnsaddr/localhost/tcp/4000/service/api": "38096c6f63616c686f7374060fa0bee80303617069",
    "/secure/api": "c6890603617069",
    "/project/default": "de84050764656661756c74",
    "/node/n1": "ceb604026e31",
    "/space/s": "eed2050173",
    "/worker/abc": "fea00603616263",
    "/ip4/127.0.0.1/udp/4000": "047f00000191020fa0",
    "/dnsaddr/host/tcp/4000/service/forward_to_x/secure/api/service/outlet": (
        "3804686f7374060fa0bee8030c666f72776172645f746f5f78c6890603617069bee803066f75746c6574"
    ),
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples(text: str) -> None:
    address = Multiaddr.parse(text)
    assert address.encode().hex() == EXAMPLES[text]
    assert Multiaddr.decode(bytes.fromhex(EXAMPLES[text])) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("self", "/secure/api"),
        ("service/api", "/service/api"),
        ("/tcp/080", "/tcp/80"),
        ("/tcp/+80", "/tcp/80"),
        ("/tcp/65535", "/tcp/65535"),
        ("/ip6/2001:DB8:0::1", "/ip6/2001:db8::1"),
        ("/ip6/::FFFF:1.2.3.4", "/ip6/::ffff:1.2.3.4"),
        ("/service/a b ü", "/service/a b ü"),
    ],
)
def test_forms_that_are_accepted(text: str, printed: str) -> None:
    assert str(Multiaddr.parse(text)) == printed
    assert Multiaddr.parse(text) == Multiaddr.parse(printed)


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "//", "/self", "/sctp/1", "/service", "/service/", "/service/api/", "/tcp/",
        "/tcp/65536", "/tcp/-1", "/tcp/1_0", "/tcp/٣", "/tcp/" + "9" * 5000, "/ip4/1.2.3",
        "/ip4/01.2.3.4", "/ip6/1", "/ip6/fe80::1%eth0", "/service/\udcff", "/tcp/1" * 65,
    ],
)  # fmt: skip
def test_text_that_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Multiaddr.parse(text)


def test_of_components() -> None:
    assert Multiaddr.of(("tcp", "080"), ("service", "x")).components == (
        ("tcp", "80"), ("service", "x"),
    )  # fmt: skip
    with pytest.raises(ConfigError):
        Multiaddr.of(("service", "a/b"))


@pytest.mark.parametrize(
    "encoded",
    [
        "8400",  # not the shortest form
        "bee8038300617069",
        "808080808001",  # more than five bytes
        "bee80301ff",  # not UTF-8
        "bee80300",  # empty
        "bee80301" + "2f",  # a slash
        "bee80305" + "61",  # cut off
        "047f0000",
        "06",
        "80",
        "05",  # unknown
        "060001" * 65,
    ],
)
def test_bytes_that_are_refused(encoded: str) -> None:
    with pytest.raises(DecodeError):
        Multiaddr.decode(bytes.fromhex(encoded))


def test_no_bytes() -> None:
    assert Multiaddr.decode(b"") == Multiaddr(())
    assert Multiaddr(()).encode() == b""


COMPONENTS = st.one_of(
    st.tuples(st.sampled_from(["tcp", "udp"]), st.integers(0, 65535).map(str)),
    st.tuples(st.just("ip4"), st.ip_addresses(v=4).map(str)),
    st.tuples(st.just("ip6"), st.ip_addresses(v=6).map(str)),
    st.tuples(
        st.sampled_from(["dnsaddr", "service", "node", "project", "space", "secure", "worker"]),
        st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1),
    ),
)


@given(st.lists(COMPONENTS, min_size=1, max_size=6))
def test_round_trip(components: list[tuple[str, str]]) -> None:
    address = Multiaddr.of(*components)
    assert Multiaddr.decode(address.encode()) == address
    assert Multiaddr.parse(str(address)) == address


@given(st.text())
def test_any_text(text: str) -> None:
    for start in ("", "/tcp/", "/ip4/", "/ip6/", "/service/"):
        try:
            address = Multiaddr.parse(start + text)
        except ConfigError:
            continue
        assert Multiaddr.decode(address.encode()) == address


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    for start in (b"", b"\xbe\xe8\x03", b"\x29"):
        try:
            address = Multiaddr.decode(start + data)
        except DecodeError:
            continue
        assert address.encode() == start + data
