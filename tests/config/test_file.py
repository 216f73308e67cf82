"""A configuration: what each section says, and every mistake at its place."""
# ruff: noqa: E501 - mistakes as they are printed, on one line

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config import file
from edge.config.file import SECTIONS, NodeConfig, read
from edge.config.mistakes import SHOWN, Mistakes
from edge.config.resources import (
    INLET,
    LISTENER,
    OUTLET,
    POLICIES,
    RELAY,
    SERVICES,
    ChannelListener,
    Inlet,
    Outlet,
    Policy,
    Relay,
    Service,
)
from edge.config.values import HostPort

ID = "I" + "ab" * 32
EXAMPLE = """\
ticket: ${ENROLLMENT_TICKET}
name: plant-7
status-endpoint: 127.0.0.1:23345
relay: plant-7
tcp-outlets:
  modbus:
    to: 127.0.0.1:502
    allow: '(= subject.scada "true")'
  ssh:
    to: 22
    allow: maintenance and not suspended
"""


def said(text: str, **given: Any) -> list[str]:
    """The mistakes, each as `line:column: key: text`."""
    with pytest.raises(Mistakes) as refused:
        read(text, "f", **given)
    return [f"{one.place.line}:{one.place.column}: {one}" for one in refused.value.found]


def bodies(config: NodeConfig) -> list[tuple[str, dict[str, Any]]]:
    """What the node is asked for, without what is not said."""
    return [
        (one.kind, {key: value for key, value in one.body.items() if value is not None})
        for one in config.resources
    ]


def test_the_example_of_stock() -> None:
    found = read(EXAMPLE, "edge.yaml", environment={"ENROLLMENT_TICKET": "the ticket"})
    assert (found.ticket, found.name) == ("the ticket", "plant-7")
    assert "the ticket" not in repr(found)
    assert found.warnings == ()
    assert found.status_endpoint == HostPort("127.0.0.1", 23345)
    assert bodies(found) == [
        ("relay", {"name": "plant-7", "at": "/project/default", "wait": True}),
        ("tcp-outlet", {
            "name": "modbus", "to": "127.0.0.1:502", "tls": False,
            "allow": '(= subject.scada "true")',
        }),
        ("tcp-outlet", {
            "name": "ssh", "to": "127.0.0.1:22", "tls": False,
            "allow": "maintenance and not suspended",
        }),
    ]  # fmt: skip
    places = {one.key: tuple(one.place) for one in found.resources}
    assert places == {
        "relay.plant-7": (4, 8),
        "tcp-outlets.modbus": (6, 3),
        "tcp-outlets.ssh": (9, 3),
    }


def test_the_keys_of_the_node() -> None:
    found = read(
        "version: 1\nname: /node/n1\nidentity: me\nproject: plant\ntcp_listener_address: 0.0.0.0:4000\n"
        "keep-channel-key: true\nforeground: True\nexit-on-eof: true\nno-status-endpoint: true\n"
        "udp: false\nin-memory: false\n"
    )
    assert (found.name, found.identity, found.project) == ("n1", "me", "plant")
    assert found.listener == HostPort("0.0.0.0", 4000)
    assert (found.keep_channel_key, found.foreground, found.exit_on_eof) == (True, True, True)
    assert (found.no_listener, found.warnings) == (False, ())
    assert read("no-tcp-listener: true").no_listener
    assert read("log-format: json").log_format == "json"
    assert read("status-endpoint: 8080").status_endpoint == HostPort("127.0.0.1", 8080)


def test_the_status_is_for_this_machine_and_logs_have_two_forms() -> None:
    with pytest.raises(Mistakes, match="2 mistakes") as raised:
        read("status-endpoint: 0.0.0.0:8080\nlog-format: xml")
    assert "not of this machine only" in str(raised.value)
    assert "no log format" in str(raised.value)


def test_json_is_yaml() -> None:
    found = read('{\n\t"name": "n1",\n\t"tcp-outlet": {"to":"5432", "tls":true}\n}')
    assert (found.name, found.outlets[0].to, found.outlets[0].tls) == (
        "n1", HostPort("127.0.0.1", 5432), True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("relay: a", ["a"]),
        ("relays: [a, b]", ["a", "b"]),
        ("relays: {a: , b: }", ["a", "b"]),
        ("relays:\n  a:\n  b: {at: /ip4/10.0.0.1/tcp/4000/secure/api}", ["a", "b"]),
        ("relay:\n- a: {relay-address: x}\n- b", ["a", "b"]),
        ("relay: {at: /ip4/10.0.0.1/tcp/4000/secure/api}", ["default"]),
        ("relay: a\nrelays: [b]", ["a", "b"]),
    ],
)
def test_forms_of_relays(text: str, names: list[str]) -> None:
    assert [one.name for one in read(text).relays] == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("tcp-outlet: {to: 1}", ["outlet"]),
        ("tcp-outlets: [{to: 1}, {to: 2}, {to: 3, from: x}]", ["outlet", "outlet-2", "x"]),
        ("tcp-outlets:\n- a: {to: 1}\n  b: {to: 2}\n- c: {to: 3}", ["a", "b", "c"]),
        ("tcp_outlets: {a: {to: 1}, to: {to: 2}}", ["a", "to"]),
    ],
)
def test_forms_of_outlets(text: str, names: list[str]) -> None:
    assert [one.name for one in read(text).outlets] == names


def test_all_flags() -> None:
    hub = "/dnsaddr/hub.example/tcp/4000/secure/api"
    found = read(f"""
name: n
relay: {{r: {{at: {hub}, to: n, authorized: {ID}, relay-address: q, no-connection-wait: true}}}}
tcp-outlet: {{o: {{to: "unix:/run/x", allow: {ID}, at: n, skip-handshake: false}}}}
tcp-outlets: {{t: {{to: "tls://h:1"}}}}
tcp-inlets:
  short: {{to: postgres, via: r, from: 15432, connection-wait: 3s}}
  long: {{to: {hub}/service/x, authorized: {ID}, hub-authorized: {ID}, expression: a=b,
         no-connection-wait: true}}
  old: {{to: /service/db, alias: older}}
""")
    assert found.relays == (
        Relay(
            "relay.r", found.relays[0].place, "r", at="n", hub=hub, authorized=ID, relay_address="q",
            no_wait=True,
        ),
    )  # fmt: skip
    assert [one.body for one in found.outlets] == [
        {"name": "o", "to": "unix:/run/x", "tls": False, "allow": ID},
        {"name": "t", "to": "h:1", "tls": True, "allow": None},
    ]
    via = "/project/default/service/forward_to_{}/secure/api/service/{}"
    short, long, old = found.inlets
    assert short.body == {
        "name": "short", "from": "127.0.0.1:15432", "to": via.format("r", "postgres"),
        "authorized": None, "hub_authorized": None, "allow": None, "connection_wait": 3000,
        "wait": True,
    }  # fmt: skip
    assert (long.to, long.authorized, long.hub_authorized) == (f"{hub}/service/x", ID, ID)
    assert (long.allow, long.no_wait, long.listen) == ("a=b", True, HostPort("127.0.0.1", 0))
    assert (old.name, old.to) == ("older", via.format("default", "db"))


def test_policies_and_services() -> None:
    found = read(f"""
policy: {{resource-type: tcp-outlet, allow: a}}
policies: [{{resource: db, expression: b, at: n}}]
name: n
services:
  secure_channel_listener: {{authorized_identifiers: [{ID}]}}
  hop: {{address: h}}
  echo:
  uppercase: {{disabled: true}}
  control-api: {{frontend: false}}
tcp-outlet: {{x: {{to: 1}}}}
""")
    assert [(one.resource, one.type, one.allow) for one in found.policies] == [
        (None, "tcp-outlet", "a"), ("db", None, "b"),
    ]  # fmt: skip
    assert found.policies[1].body == {"resource": "db", "type": None, "expression": "b"}
    listener, hop = found.services
    assert isinstance(listener, ChannelListener)
    assert isinstance(hop, Service)
    assert listener.body == {"address": "api", "authorized": [ID]}
    assert hop.body == {"type": "hop", "address": "h"}


def test_the_same_policy_twice_is_harmless_where_two_kinds_share_a_name() -> None:
    text = "tcp-outlet: {db: {to: 1, allow: a}}\ntcp-inlet: {db: {to: x, allow: %s}}"
    assert len(read(text % "a").resources) == 2
    assert said(text % "b") == ["2:13: tcp-inlet.db: line 1 has a policy of db already"]


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        # unknown keys
        ("nam: x", ["1:1: unknown key 'nam'; did you mean 'name'?"]),
        ("vollkommen: x", ["1:1: unknown key 'vollkommen'"]),
        (
            "tcp-outlet:\n  to: 1\n  alow: x",
            ["3:3: tcp-outlet: unknown key 'alow'; did you mean 'allow'?"],
        ),
        ("tcp-outlets: {a: {to: 1, TLS: true}}", ["1:26: tcp-outlets.a: unknown key 'TLS'"]),
        (
            "relay: {a: {relay_address: b}}",
            ["1:13: relay.a: unknown key 'relay_address'; did you mean 'relay-address'?"],
        ),
        (
            "policy: {resource: a, allow: b, alow: c}",
            ["1:33: policy: unknown key 'alow'; did you mean 'allow'?"],
        ),
        ("services: {hopp: }", ["1:12: services: unknown key 'hopp'; did you mean 'hop'?"]),
        (
            "tcp-outlet: {TLS: true}",
            ["1:13: tcp-outlet: to is missing", "1:14: tcp-outlet: unknown key 'TLS'"],
        ),
        # wrong indentation
        (
            "tcp-outlet:\n  to: $P:1\n  relay: db",
            [
                "2:7: the variable P has no value: set it in the environment, with --variable P=…, or under variables",
                "3:3: tcp-outlet: unknown key 'relay'; it is a section of its own: write it below 'tcp-outlet', with the same indentation",
            ],
        ),
        (
            "tcp-outlets:\n  db: {to: 1}\n  relay: db",
            [
                "3:3: tcp-outlets: unknown key 'relay'; it is a section of its own: write it below 'tcp-outlets', with the same indentation"
            ],
        ),
        (
            "tcp-outlets:\n  db: {to: 1}\n  tcp-inlets: {x: {to: a}}",
            [
                "3:3: tcp-outlets: unknown key 'tcp-inlets'; it is a section of its own: write it below 'tcp-outlets', with the same indentation"
            ],
        ),
        (
            "tcp-outlet:\nto: 1",
            [
                "1:12: tcp-outlet: expected a map, or a list of maps",
                "2:1: unknown key 'to'; it belongs into a section such as tcp-outlet, with more indentation",
            ],
        ),
        # wrong types
        (
            "name: [a]",
            ["1:7: name: expected a name of at most 64 letters, digits, - and _, found a list"],
        ),
        (
            "name: {a: b}",
            ["1:7: name: expected a name of at most 64 letters, digits, - and _, found a map"],
        ),
        ("name:", ["1:6: name: is empty; expected a name of at most 64 letters, digits, - and _"]),
        (
            "name: ''",
            ["1:7: name: is empty; expected a name of at most 64 letters, digits, - and _"],
        ),
        ("ticket: true", ["1:9: ticket: expected a text, found true"]),
        ("foreground: 1", ["1:13: foreground: '1' is neither true nor false"]),
        ("relay: []", ["1:8: relay: is an empty list"]),
        ("relay: [[a]]", ["1:9: relay: a list in a list"]),
        ("tcp-outlet: 5432", ["1:13: tcp-outlet: expected a map, or a list of maps"]),
        ("tcp-outlets: {a: {to: 1}, b: 5}", ["1:30: tcp-outlets.b: expected a map"]),
        (
            "tcp-outlets: {a: {to: 1}, 'b c': {to: 1}}",
            ["1:27: tcp-outlets: 'b c' is no name: letters, digits, - and _"],
        ),
        ("policy: a", ["1:9: policy: expected a map with resource or resource-type, and allow"]),
        ("services: [hop]", ["1:11: services: expected a map of services"]),
        ("services: {hop: x}", ["1:17: services.hop: expected a map"]),
        (
            "services: {secure-channel-listener: {authorized-identifiers: []}}",
            ["1:62: services.secure-channel-listener.authorized-identifiers: is an empty list"],
        ),
        ("variables: [a]", ["1:12: variables: expected a map of names and values"]),
        ("variables: {A: [b]}", ["1:16: variables.A: expected a text, a number or a truth"]),
        # bad values
        ("version: 2", ["1:10: version: version '2' is not known; expected 1"]),
        ("name: a b", ["1:7: name: 'a b' is no name: letters, digits, - and _"]),
        (f"name: {'a' * 65}", ["1:7: name: a name has at most 64 characters"]),
        (
            "tcp-listener-address: host",
            ["1:23: tcp-listener-address: 'host' has no port: write PORT or HOST:PORT"],
        ),
        (
            "tcp-listener-address: tls://1",
            ["1:23: tcp-listener-address: only tcp:// is possible here"],
        ),
        (
            "relay: {r: {at: /ipv4/1/tcp/2}}",
            ["1:17: relay.r.at: /ipv4 is not known in a multiaddr"],
        ),
        (
            "relay: {r: {authorized: I12}}",
            ["1:25: relay.r.authorized: 'I12' is no identifier: I and 64 hex digits"],
        ),
        (
            "tcp-inlet: {to: a, from: 1, connection-wait: soon}",
            ["1:46: tcp-inlet.connection-wait: 'soon' is no duration: digits and ms, s, m, h or d"],
        ),
        (
            "tcp-inlet: {to: /ip4/1.2.3.4/tcp/1/service/x, via: r}",
            ["1:12: tcp-inlet: via goes with the name of a service, not with a whole route"],
        ),
        (
            "policy: {resource-type: tcp-outlt, allow: a}",
            [
                "1:25: policy.resource-type: 'tcp-outlt' is no type of resource; did you mean 'tcp-outlet'?"
            ],
        ),
        ("variables: {'1': a}", ["1:13: variables: '1' is no name of a variable"]),
        ("variables: {A: }", ["1:15: variables.A: is empty"]),
        # missing
        ("tcp-outlets: {db: {tls: true}}", ["1:19: tcp-outlets.db: to is missing"]),
        ("tcp-inlet: {from: 1}", ["1:12: tcp-inlet: to is missing"]),
        (
            "policies: [{allow: a}, {resource: b}]",
            [
                "1:12: policies[1]: resource or resource-type is missing",
                "1:24: policies[2]: allow or expression is missing",
            ],
        ),
        # twice
        ("name: a\nname: b", ["2:1: name: is there already, in line 1"]),
        (
            "tcp_outlets: {a: {to: 1}}\ntcp-outlets: {b: {to: 1}}",
            ["2:1: tcp-outlets: is there already, in line 1"],
        ),
        ("tcp-outlet: {to: 1,\n to: 2}", ["2:2: tcp-outlet.to: is there already, in line 1"]),
        (
            "tcp-outlets: {a: {to: 1},\n a: {to: 2}}",
            ["2:2: tcp-outlets.a: is there already, in line 1"],
        ),
        (
            "tcp-outlet: {to: 1, allow: a, expression: b}",
            ["1:31: tcp-outlet.expression: the same is said by another key"],
        ),
        (
            "tcp-outlet: {a: {to: 1}}\ntcp-outlets: {a: {to: 1}}",
            ["2:15: tcp-outlets.a: another tcp-outlet is called a, in line 1"],
        ),
        ("variables: {A: b,\n A: c}", ["2:2: variables.A: is there already, in line 1"]),
        ("services: {hop: ,\n hop: }", ["2:2: services.hop: is there already, in line 1"]),
        (
            "policy:\n- {resource: a, allow: b}\n- {resource: a, allow: b}",
            ["3:3: policy[2]: line 2 has a policy of a already"],
        ),
        (
            "policy:\n- {resource-type: relay, allow: b}\n- {resource-type: relay, allow: c}",
            ["3:3: policy[2]: line 2 has a policy of every relay already"],
        ),
        (
            "policy: {resource: a, resource-type: relay, allow: b}",
            ["1:9: policy: resource and resource-type exclude each other"],
        ),
        (
            "no-tcp-listener: true\ntcp-listener-address: 1",
            ["1:1: no-tcp-listener: tcp-listener-address says the contrary"],
        ),
        # of another node
        ("name: a\nrelay: {r: {to: b}}", ["2:9: relay.r: is for the node b, and this one is a"]),
        (
            "policy: {resource: a, allow: b, at: c}",
            ["1:9: policy: is for the node c, and this one has no name"],
        ),
        # not supported
        ("udp: true", ["1:6: udp: is not supported: there is no UDP here"]),
        (
            "in-memory: true",
            ["1:12: in-memory: is not supported: what a node has is kept on the disk"],
        ),
        (
            "kafka-inlets: {a: {}}",
            ["1:15: kafka-inlets: Kafka is not supported yet"],
        ),
        (
            "influxdb_outlet: x",
            [
                "1:18: influxdb_outlet: InfluxDB leases are out of scope; a tcp-outlet reaches an InfluxDB server"
            ],
        ),
        ("launch-config: {}", ["1:16: launch-config: is gone since 0.150: use services"]),
        (
            "nodes: {}",
            [
                "1:8: nodes: belongs to the older form of several nodes; one file describes one node here"
            ],
        ),
        (
            "tcp-inlet: {to: a, http-header: ['A: b']}",
            ["1:33: tcp-inlet.http-header: is not supported"],
        ),
        (
            "tcp-outlet: {to: 1, privileged: true}",
            ["1:33: tcp-outlet.privileged: is not supported"],
        ),
        (
            "services: {control-api: {backend: true}}",
            ["1:35: services.control-api.backend: the control API over HTTP is not supported"],
        ),
        # no YAML, or not enough of it
        ("", ["1:1: there is nothing in it"]),
        ("# nothing\n", ["1:1: there is nothing in it"]),
        ("- a", ["1:1: a map of sections was expected"]),
        ("a: b: c", ["1:5: mapping values are not allowed here"]),
        ("a: 'b", ["1:6: while scanning a quoted scalar, found unexpected end of stream"]),
        ("? [a]\n: b", ["1:3: a key must be a text"]),
        (
            "a: 1\n--- \nb: 1",
            ["2:1: expected a single document in the stream, but found another document"],
        ),
    ],
)
def test_each_mistake_has_its_place(text: str, mistakes: list[str]) -> None:
    assert said(text) == mistakes


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("tcp-outlet:\n  to: 1\n  allow: a or (b\n", "3:11"),
        ("tcp-outlet:\n  to: 1\n  allow: 'a or (b'\n", "3:12"),
        ('tcp-outlet: {to: 1, allow: "(= a [) b"}', "1:34"),
        ("tcp-outlet:\n  to: 1\n  allow: (plus a b)\n", "3:10"),
        ("tcp-outlet:\n  to: 1\n  allow: |\n    a\n    or (b\n", "3:10"),
    ],
)
def test_a_wrong_policy_is_pointed_into(text: str, place: str) -> None:
    (found,) = said(text)
    assert found.startswith(f"{place}: tcp-outlet.allow: policy "), found


def test_a_variable_without_a_value_is_one_mistake_only() -> None:
    for text in ("relay: $X", "tcp-outlet: $X", "tcp-outlets: {$X: {to: 1}}", "name: $X"):
        (found,) = said(text)
        assert ": the variable X has no value" in found


def test_a_place_is_said_as_compilers_do() -> None:
    config = read("name: n", "edge.yaml")
    assert config.at(config.places["name"], "no") == "edge.yaml:1:1: no"


def test_everything_at_once_and_not_too_much_of_it() -> None:
    assert (
        len(said("tcp-outlets: {a: {tto: 1}, b: {to: x}}\nfoo: 1\nkafka-inlet: {}\nname: a b")) == 6
    )
    with pytest.raises(Mistakes) as refused:
        read("\n".join(f"x{number}: 1" for number in range(SHOWN + 5)), "f")
    lines = str(refused.value).split("\n  ")
    assert (len(refused.value.found), lines[0]) == (45, "f has 45 mistakes:")
    assert (len(lines), lines[1], lines[-1]) == (42, "f:1:1: unknown key 'x0'", "and 5 more")


def test_what_has_no_effect_is_said() -> None:
    warnings = read(
        "udp-listener-address: 1\nhttp-server: true\nchild-process: true\n"
        "relay: {r: {retry-count: 3, no-retry: true}}\ntcp-outlet: {to: 1, enable-nagle: true}\n"
        "services: {control-api: {http_bind_address: 'x:1'}}"
    ).warnings
    assert [line.split(": ")[0:2] for line in warnings] == [
        ["configuration:1:23", "udp-listener-address"], ["configuration:2:14", "http-server"],
        ["configuration:3:16", "child-process"], ["configuration:4:26", "relay.r.retry-count"],
        ["configuration:4:39", "relay.r.no-retry"], ["configuration:5:35", "tcp-outlet.enable-nagle"],
        ["configuration:6:45", "services.control-api.http-bind-address"],
    ]  # fmt: skip


def test_the_name_may_come_from_the_command_line() -> None:
    assert read("relay: {r: {to: n}}", name="n").relays[0].at == "n"
    assert said("relay: {r: {to: n}}") == [
        "1:9: relay.r: is for the node n, and this one has no name"
    ]


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from([
    *SECTIONS, "to", "allow", "at", "from", ": ", "- ", "\n", "\n  ", "\n    ", "{", "}", "[", "]", ",",
    "'", '"', "$A", "${B:-c}", "${", "$$", "&a ", "*a ", "!!str ", "|", "1", "true", "~", "x", "#",
    "\t",
])).map("".join))  # fmt: skip
def test_any_text_is_a_configuration_or_mistakes(text: str) -> None:
    try:
        found = read(text, "f", environment={"A": "a"})
    except Mistakes as mistakes:
        places = [one.place for one in mistakes.found]
    else:
        places = list(found.places.values())
    lines = sum(map(text.count, "\n\r\x85\u2028\u2029")) + 2
    assert all(1 <= place.line <= lines and place.column >= 1 for place in places)


def test_the_documentation_names_every_key() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    everywhere = {*SECTIONS, *SERVICES, *RELAY, *OUTLET, *INLET, *POLICIES, *LISTENER} - {
        "at", "expression",
    }  # fmt: skip
    assert {key for key in everywhere if f"`{key}`" not in text} == set()


def test_the_table_of_sections_feeds_what_there_is() -> None:
    there = set(NodeConfig.__dataclass_fields__)
    assert {section.into for section in SECTIONS.values()} - {""} <= there
    assert not file.INNER & SECTIONS.keys()
    for kind in (Relay, Outlet, Inlet, ChannelListener, Service):
        assert kind.kind
    assert Policy.__dataclass_fields__
