"""Credentials by the command: issued offline, checked, stored where a node finds its own, listed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.cli import client
from edge.cli.main import MISUSED
from edge.errors import EdgeError
from edge.node.store import Store
from tests.cli.test_local import home, out, run

__all__ = ["home"]
STRANGER = "I" + "ab" * 32


class Here:
    """An issuer, a subject, and a node of the subject that believes the issuer."""

    def __init__(self, home: Path) -> None:
        self.issuer = out("identity", "create", "issuer")
        self.subject = out("identity", "create", "subject")
        self.home = home

    def issue(self, *more: str) -> str:
        return out(
            "credential",
            "issue",
            "--as",
            "issuer",
            "--for",
            self.subject,
            "--encoding",
            "hex",
            *more,
        )

    def node(self, scope: str = "test") -> None:
        """Written down, not started."""
        history = out("identity", "export", "issuer")
        authority = {"history": history, "scope": scope}
        store = Store(self.home / "edge.db")
        store.add_node("n", identity="subject", settings={"authority": authority})
        store.close()

    def store(self, credential: str, *, issuer: str = "", scope: str = "test") -> str:
        return out(
            "credential", "store", "--issuer", issuer or self.issuer, "--scope", scope,
            "--credential", credential,
        )  # fmt: skip


@pytest.fixture
def here(home: Path) -> Here:
    return Here(home)


def refused(*arguments: str) -> str:
    with pytest.raises(EdgeError) as caught:
        run(*arguments)
    return f"{caught.value}\n{caught.value.hint}"


def test_issued_and_verified(here: Here, tmp_path: Path) -> None:
    made = here.issue("-a", "role=plc", "-a", "trusted", "--ttl", "2h")
    for how in (("--credential", made), ("--credential-path", str(tmp_path / "c"))):
        (tmp_path / "c").write_text(made + "\n")
        assert out("credential", "verify", "--issuer", here.issuer, *how) == "true"
    shown = json.loads(
        out("credential", "issue", "--as", "issuer", "--for", here.subject, "-a", "a=b",
            "--output", "json")
    )  # fmt: skip
    assert set(shown) == {
        "credential", "subject", "issuer", "created_at", "expires_at", "attributes",
    }  # fmt: skip
    assert (shown["subject"], shown["issuer"]) == (here.subject, here.issuer)
    assert (shown["attributes"], shown["expires_at"] - shown["created_at"]) == ({"a": "b"}, 1800)
    block = out("credential", "issue", "--as", "issuer", "--for", here.subject, "-a", "role=plc")
    assert here.subject in block
    assert "role=plc" in block


def test_of_somebody_who_is_not_known(here: Here) -> None:
    """By the identifier alone, and by the history that was brought along."""
    history = out("identity", "export", "subject")
    for subject, named in ((STRANGER, STRANGER), (history, here.subject)):
        made = json.loads(
            out("credential", "issue", "--as", "issuer", "--for", subject, "--output", "json")
        )
        assert made["subject"] == named
        check = ("--issuer", here.issuer, "--credential", made["credential"])
        assert out("credential", "verify", *check) == "true"


def test_what_does_not_hold(here: Here, tmp_path: Path) -> None:
    made = here.issue()

    def verified(text: str, issuer: str) -> str:
        found = run("credential", "verify", "--issuer", issuer, "--credential", text)
        assert found.exit_code == 0, "as with stock"
        assert "does not hold" in found.stderr or found.stdout == "true"
        return found.stdout

    middle = len(made) // 2
    forged = made[:middle] + ("0" if made[middle] != "0" else "1") + made[middle + 1 :]
    assert verified(made, here.issuer) == "true"
    for text, issuer in (
        (made, here.subject), (made, STRANGER), (forged, here.issuer), ("xyz", here.issuer),
        (made[:-2], here.issuer), ("", here.issuer),
    ):  # fmt: skip
        assert verified(text, issuer) == "false"
    said = out(
        "credential", "verify", "--issuer", STRANGER, "--credential", made, "--output", "json"
    )
    assert json.loads(said) == {"is_valid": False}
    where = str(tmp_path / "missing")
    assert "cannot read" in refused(
        "credential", "verify", "--issuer", here.issuer, "--credential-path", where
    )


def test_stored_and_listed(here: Here) -> None:
    here.node()
    made = here.issue("-a", "role=plc")
    assert here.store(made) == made
    (listed,) = json.loads(out("credential", "list"))
    assert (listed["scope"], listed["is_verified"]) == ("test", True)
    assert listed["credential"]["credential"] == made
    for some in (("--issuer", here.issuer), ("--subject", here.subject), ("--at", "n")):
        assert json.loads(out("credential", "list", *some)) == [listed]
    for none in (("--issuer", here.subject), ("--subject", here.issuer)):
        assert out("credential", "list", *none) == "[]"
    other = out(
        "credential", "store", "--issuer", here.issuer, "--scope", "b", "--credential", made,
        "--output", "json",
    )  # fmt: skip
    assert json.loads(other) == {"issuer": here.issuer, "credential": made}
    assert len(json.loads(out("credential", "list"))) == 2


def test_one_that_expired_is_listed_as_such(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.node()
    here.store(here.issue("--ttl", "60s"))
    _later(monkeypatch, 120)
    (listed,) = json.loads(out("credential", "list"))
    assert listed["is_verified"] is False


def _later(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    from edge.node.clock import Clock  # noqa: PLC0415

    now = Clock.now
    monkeypatch.setattr(Clock, "now", lambda self: now(self) + seconds)


def test_what_is_not_stored(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.node()
    made = here.issue()
    asked = ("credential", "store", "--scope", "s", "--issuer")
    assert "not by" in refused(*asked, here.subject, "--credential", made)
    of_another = out(
        "credential", "issue", "--as", "issuer", "--for", STRANGER, "--encoding", "hex"
    )
    assert "node n is" in refused(*asked, here.issuer, "--credential", of_another)
    _later(monkeypatch, 3600)
    assert "expired" in refused(*asked, here.issuer, "--credential", made)
    assert out("credential", "list") == "[]"


def test_bad_input(here: Here) -> None:
    issue = ("credential", "issue", "--as", "issuer", "--for")
    for subject in ("I00", "xyz", "00ff"):
        assert "identif" in refused(*issue, subject)
    assert "reserved" in refused(*issue, here.subject, "-a", "identifier=me")
    assert "not found" in refused("credential", "issue", "--as", "nobody", "--for", here.subject)
    assert "is in the vault default" in refused(
        "credential", "issue", "v", *issue[2:], here.subject
    )
    assert out("credential", "issue", "default", *issue[2:], here.subject)
    for how in ((), ("--credential", "00", "--credential-path", "x")):
        assert run("credential", "verify", "--issuer", here.issuer, *how).exit_code in (2, MISUSED)


def test_a_running_node_is_told(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again; where it presents something else, that is said."""
    here.node()
    asked: list[str] = []
    monkeypatch.setattr("edge.node.home.Home.running", lambda self, name: object())

    def connecting(answer: bool) -> Callable[[str], object]:
        class Peer:
            def post(self, path: str, body: object) -> bool:
                asked.append(path)
                return answer

        return lambda name: Peer()

    for answer in (True, False):
        monkeypatch.setattr(client, "connect", connecting(answer))
        found = run(
            "credential", "store", "--issuer", here.issuer, "--scope", "test", "--credential",
            here.issue(),
        )  # fmt: skip
        assert ("does not present it" in found.stderr) is not answer
    assert asked == ["/credential"] * 2
