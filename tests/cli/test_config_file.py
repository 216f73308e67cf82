"""`node create` with a configuration, in real processes: enrolled, made, compared, or nothing left."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_end_to_end import ROOT, Machine, echo, free_port, soon_through, through

__all__ = ["echo"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
EXAMPLE = ROOT / "docs" / "examples" / "plant-7.yaml"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with machines(tmp_path_factory.mktemp("fleet"), "hub") as (made,):
        made.do("project", "init", "plant", "--address", f"127.0.0.1:{free_port()}")
        yield made


@contextlib.contextmanager
def machines(folder: Path, *names: str) -> Iterator[list[Machine]]:
    made = [Machine(folder / name) for name in names]
    try:
        yield made
    finally:
        for machine in made:
            machine.run("node", "delete", "--all", "--yes", "--force")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENROLLMENT_TICKET", "CREDENTIALS_DIRECTORY", "MODBUS"):
        monkeypatch.delenv(name, raising=False)


def ticket(hub: Machine, *arguments: str) -> str:
    return hub.do("project", "ticket", *arguments)


def refused(machine: Machine, *arguments: str) -> list[str]:
    """The lines that a command says that must fail; it prints no result."""
    found = machine.run(*arguments)
    assert (found.returncode, found.stdout) == (70, ""), found
    assert "Traceback" not in found.stderr
    return found.stderr.splitlines()


def test_the_readme_has_the_example() -> None:
    text = EXAMPLE.read_text()
    shown = "".join(f"    {line}\n" for line in text.splitlines())
    assert shown in (ROOT / "README.md").read_text()


def test_the_example_from_the_ticket_to_the_service(
    hub: Machine, tmp_path: Path, echo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machines(tmp_path, "gateway", "office", "stranger") as (gateway, office, stranger):
        monkeypatch.setenv("ENROLLMENT_TICKET", ticket(hub, "--relay", "plant-7"))
        create = ("node", "create", str(EXAMPLE), "--variable", f"MODBUS=127.0.0.1:{echo}")
        found = gateway.run(*create)
        assert (found.returncode, found.stdout) == (0, "plant-7"), found.stderr
        said = found.stderr.splitlines()
        assert [line for line in said if line.endswith("added")] == [
            "relay plant-7 was added", "tcp-outlet modbus was added", "tcp-outlet ssh was added",
        ]  # fmt: skip
        environ = Path(f"/proc/{gateway.pid('plant-7')}/environ").read_bytes()
        assert b"ENROLLMENT_TICKET" not in environ

        inlet = "{name: %s, tcp-inlet: {modbus: {to: modbus, via: plant-7, from: %d}}}"
        monkeypatch.delenv("ENROLLMENT_TICKET")
        for machine, name, attribute in ((office, "office", "scada"), (stranger, "x", "other")):
            port = free_port()
            made = machine.do(
                "node", "create", "--configuration", inlet % (name, port),
                "--enrollment-ticket", ticket(hub, "-a", attribute),
            )  # fmt: skip
            assert made == name
            if machine is office:
                soon_through(f"127.0.0.1:{port}")
            else:
                with contextlib.suppress(OSError):  # cut at once, or a moment later
                    assert through(f"127.0.0.1:{port}") == b""
                log = Path(gateway.do("node", "logs", "plant-7")).read_text()
                assert "tcp-outlet modbus: I" in log
                assert "is refused by the policy of modbus" in log

        # A second time: nothing happens, and the used ticket is not asked about.
        monkeypatch.setenv("ENROLLMENT_TICKET", "whatever it was")
        before = gateway.pid("plant-7")
        found = gateway.run(*create)
        assert (found.returncode, found.stdout, found.stderr) == (0, "plant-7", "")
        assert gateway.pid("plant-7") == before
        # Stopped, it is started; and what changed is changed.
        gateway.do("node", "stop", "plant-7")
        text = EXAMPLE.read_text().replace("  ssh:\n    to: 22\n", "  ssh:\n    to: 2222\n")
        changed = tmp_path / "changed.yaml"
        changed.write_text(text)
        found = gateway.run("node", "create", str(changed), "--variable", f"MODBUS={echo}")
        assert (found.returncode, found.stdout) == (0, "plant-7"), found.stderr
        assert found.stderr == "tcp-outlet ssh was changed\n"
        # What a node is made of does not change.
        (said_first, *_) = refused(
            gateway, "node", "create", "--configuration", "name: plant-7\nidentity: other"
        )
        assert said_first == (
            "error: --configuration:2:1: identity: node plant-7 exists already, with default"
        )


def test_a_used_ticket_is_fine_for_a_member_and_a_wrong_one_is_located(
    hub: Machine, tmp_path: Path
) -> None:
    with machines(tmp_path, "gateway", "other") as (gateway, other):
        once = tmp_path / "ticket"
        once.write_text(ticket(hub) + "\n")
        file = tmp_path / "edge.yaml"
        file.write_text(f"name: n\nticket: {once}\n")
        assert gateway.do("node", "create", str(file)) == "n"
        gateway.do("node", "delete", "n", "--yes")
        assert gateway.do("node", "create", str(file)) == "n"
        lines = refused(other, "node", "create", str(file))
        assert any(f"error: {file}:2:1: ticket: " in line for line in lines), lines
        assert other.do("node", "list", "--output", "json") == "[]"


def test_a_step_that_fails_leaves_no_node_and_says_where(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    port = free_port()
    file.write_text(
        f"name: n\ntcp-outlet: {{a: {{to: 1}}}}\ntcp-inlets:\n  x: {{to: /secure/api, from: {port}}}\n"
        f"  y:\n    to: /secure/api\n    from: {port}\n"
    )
    lines = refused(machine, "node", "create", str(file))
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert error.startswith(f"error: {file}:5:3: tcp-inlets.y: cannot listen at 127.0.0.1:{port}")
    assert machine.do("node", "list") == "[]"
    assert machine.do("identity", "list") == "[]"
    lines = refused(machine, "node", "create", str(file), "--foreground")
    assert any(f"error: {file}:5:3: tcp-inlets.y: cannot listen" in line for line in lines), lines
    assert machine.do("node", "list") == "[]"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with machines(tmp_path, "home") as (made,):
        yield made


def test_mistakes_are_all_said_and_nothing_is_made(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text("name: n\ntcp-outlet:\n  to: $NOBODY\n  relay: r\nlog: x\n")
    assert refused(machine, "node", "create", str(file)) == [
        f"error: {file} has 3 mistakes:",
        f"  {file}:3:7: the variable NOBODY has no value: set it in the environment, with --variable "
        "NOBODY=…, or under variables",
        f"  {file}:4:3: tcp-outlet: unknown key 'relay'; it is a section of its own: write it below "
        "'tcp-outlet', with the same indentation",
        f"  {file}:5:1: unknown key 'log'",
    ]
    file.write_bytes(b"name: n\n# \xff\n")
    assert refused(machine, "node", "create", str(file)) == [f"error: {file}:2: this is not UTF-8"]
    assert machine.do("node", "list") == "[]"


def test_where_a_configuration_can_be(machine: Machine, tmp_path: Path) -> None:
    assert machine.do("node", "create", "name: a\nno-tcp-listener: true") == "a"
    assert machine.node("a")["listening"] == []
    assert machine.do("node", "create", "b", "--configuration", '{"name": "ignored"}') == "b"
    assert (
        machine.do("node", "create", "c", "--node-config", "tcp-outlet: {x: {to: 1, at: c}}") == "c"
    )
    piped = subprocess.run(
        [sys.executable, "-m", "edge", "node", "create", "-", "-t", "127.0.0.1:0"],
        input="name: d\ntcp-listener-address: 0.0.0.0:1",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OCKAM_HOME": str(machine.home)},
        timeout=60,
        check=False,
    )
    assert (piped.returncode, piped.stdout) == (0, "d"), piped.stderr
    (listening,) = machine.node("d")["listening"]  # type: ignore[misc, attr-defined]
    assert listening.startswith("127.0.0.1:")
    (tmp_path / "e.yaml").write_text("name: e")
    with serving(tmp_path) as url:
        assert machine.do("node", "create", f"{url}/e.yaml?token=secret") == "e"
        lines = refused(machine, "node", "create", f"{url}/none.yaml?token=secret")
    assert lines == [f"error: {url}/none.yaml cannot be downloaded: File not found"]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server of the files of a folder; its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            """Not on our standard error."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no/such.yaml",), "nor is it a file or a URL"),
        (("name: a", "--configuration", "name: b"), "a configuration is given twice"),
        (("a", "--variable", "A"), "write NAME=VALUE"),
        (("a", "--variable", "A="), "write NAME=VALUE"),
        (("a", "--variable", "A=1", "--variable", "A=2"), "is given twice"),
        (("exit-on-eof: true",), "--exit-on-eof needs --foreground"),
    ],
)
def test_misuse(machine: Machine, arguments: tuple[str, ...], said: str) -> None:
    found = machine.run("node", "create", *arguments)
    assert found.returncode == 64, found
    assert said in found.stderr
    assert machine.do("node", "list") == "[]"


def test_the_foreground_of_a_file(machine: Machine) -> None:
    text = "name: f\nforeground: true\nexit-on-eof: true\ntcp-outlet: {x: {to: 1}}"
    process = subprocess.Popen(
        [sys.executable, "-m", "edge", "node", "create", "--configuration", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "OCKAM_HOME": str(machine.home)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if b"is ready" in line:
            break
    assert '"to": "127.0.0.1:1"' in machine.do("node", "show", "f")
    _, errors = process.communicate(timeout=30)  # closes its standard input
    assert process.returncode == 0, errors
