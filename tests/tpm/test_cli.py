"""`hsm attest`, `hsm verify-attestation` and `hsm challenge`, as a person uses them."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edge.cli import attest
from edge.identity.history import create
from edge.identity.keys import KeyKind, PublicKey
from tests.tpm import forge
from tests.tpm.conftest import ROOT, Machine
from vault_backends.tpm.bundle import Bundle
from vault_backends.tpm.chain import certificate
from vault_backends.tpm.structures import SHA1, SHA256, Public, Selection
from vault_backends.vault import Refused

NONCE = ("--nonce", "ab" * 32)


@pytest.fixture(scope="module")
def proof(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good evidence of the identity."""
    out = tmp_path_factory.mktemp("proof") / "evidence"
    machine.edge("hsm", "attest", "gateway", *NONCE, "--pcrs", "sha256:0,7", "--out", out)
    return out


@pytest.fixture
def ca(machine: Machine) -> tuple[str, Path]:
    return "--ca", machine.ca


def verify(
    machine: Machine, proof: Path, *more: str | Path, good: bool = True
) -> dict[str, object]:
    command: list[str | Path] = ["hsm", "verify-attestation", proof, "--ca", machine.ca]
    command += ["--output", "json", *(() if "--answer" in more else ("--unchallenged",))]
    said: dict[str, object] = json.loads(machine.edge(*command, *more, good=good).stdout)
    return said


def failures(said: dict[str, object]) -> list[str]:
    checks = said["checks"]
    assert isinstance(checks, list)
    return [check["name"] for check in checks if not check["passed"]]


def test_an_identity_is_attested_and_verified(machine: Machine, proof: Path) -> None:
    identifier = machine.edge("identity", "show", "gateway").stdout.strip()
    said = verify(machine, proof, *NONCE, "--identity", identifier)
    assert said["accepted"] is True
    assert said["identifier"] == identifier
    assert said["activation"] is False
    assert said["pcrs"] == {"sha256": {"0": "00" * 32, "7": "00" * 32}}
    clock = said["clock"]
    assert isinstance(clock, dict)
    assert clock.keys() == {"milliseconds", "resets", "restarts", "safe", "firmware"}


def test_a_report_for_people_names_each_check(
    machine: Machine, proof: Path, ca: tuple[str, Path]
) -> None:
    text = machine.edge("hsm", "verify-attestation", proof, *ca, *NONCE, "--unchallenged").stdout
    for name in ("ek-chain", "key-attributes", "quote", "history"):
        assert f"✔ {name}" in text
    assert "not asked" in text
    assert "resets" in text


def test_what_is_refused_has_a_name_and_an_exit_code(
    machine: Machine, proof: Path, ca: tuple[str, Path], tmp_path: Path
) -> None:
    assert failures(verify(machine, proof, "--nonce", "cd" * 32, good=False)) == [
        "nonce", "certify",
    ]  # fmt: skip
    wrong = ("--pcr", "sha256:7=" + "11" * 32, "--identity", "I" + "00" * 32)
    assert failures(verify(machine, proof, *NONCE, *wrong, good=False)) == [
        "pcr-values", "identifier",
    ]  # fmt: skip
    assert not failures(verify(machine, proof, *NONCE, "--pcr", "sha256:7=" + "00" * 32))
    changed = tmp_path / "changed"
    changed.write_bytes(proof.read_bytes().replace(b"00000000", b"00000001", 1))
    done = machine.edge("hsm", "verify-attestation", changed, *ca, *NONCE, good=False)
    assert done.returncode == 70
    assert "is refused: " in done.stderr


def test_evidence_made_without_any_tpm_is_not_accepted(
    machine: Machine, proof: Path, ca: tuple[str, Path], tmp_path: Path
) -> None:
    """The certificate of an endorsement key is no secret, and the attestation key may be any: with
    the certificate of some TPM, all but the challenge can be had by software."""
    real = Bundle.decode(proof.read_bytes())
    forged = tmp_path / "forged"
    forged.write_bytes(
        forge.Forge(
            nonce=real.nonce,
            ek=Public.decode(real.ek_public),
            certificate=certificate(real.ek_certificate),
            chain=real.ek_chain,
        ).file()
    )
    command = ("hsm", "verify-attestation", forged, *ca, *NONCE, "--output", "json")
    done = machine.edge(*command, good=False)
    said = json.loads(done.stdout)
    assert said["accepted"] is False
    assert failures(said) == ["activation"]
    assert done.returncode == 70
    assert "hsm challenge" in done.stderr


def test_a_challenge_is_answered_by_the_same_tpm(
    machine: Machine, other_machine: Machine, proof: Path, ca: tuple[str, Path], tmp_path: Path
) -> None:
    asked, kept, answer = tmp_path / "challenge", tmp_path / "kept", tmp_path / "answer"
    machine.edge("hsm", "challenge", proof, *ca, *NONCE, "--out", asked, "--secret-out", kept)
    machine.edge("hsm", "attest", "--answer", asked, "--out", answer)
    for secret in (kept, answer):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert kept.read_bytes() == answer.read_bytes()
    said = verify(machine, proof, *NONCE, "--answer", answer, "--secret", kept)
    assert said["activation"] is True

    done = other_machine.edge("hsm", "attest", "--answer", asked, "--out", answer, good=False)
    assert "another" in done.stderr

    text = json.loads(answer.read_text())
    text["secret"] = text["secret"][:-1] + ("0" if text["secret"][-1] != "0" else "1")
    answer.write_text(json.dumps(text, indent=1, sort_keys=True) + "\n")
    said = verify(machine, proof, *NONCE, "--answer", answer, "--secret", kept, good=False)
    assert failures(said) == ["activation"]


def test_a_key_of_a_token_is_attested_without_an_identity(machine: Machine, tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    machine.edge("hsm", "attest", machine.token.uri(object="gateway"), *NONCE, "--out", out)
    assert verify(machine, out, *NONCE)["identifier"] is None
    done = machine.edge("hsm", "attest", machine.token.uri(), *NONCE, "--out", out, good=False)
    assert "object=LABEL" in done.stderr


def test_a_certificate_may_come_from_a_file(machine: Machine, tmp_path: Path) -> None:
    out, der = tmp_path / "evidence", tmp_path / "ek.der"
    machine.token.tpm_tool("tpm2_nvread", "0x1c00002", "-o", str(der))
    machine.token.clean()
    command = ("hsm", "attest", "gateway", *NONCE, "--out", out, "--ek-certificate", der)
    machine.edge(*command)
    assert verify(machine, out, *NONCE)["accepted"] is True
    der.write_text("no certificate")
    assert "holds no certificate" in machine.edge(*command, good=False).stderr


def test_an_identity_outside_a_tpm_is_refused(machine: Machine, tmp_path: Path) -> None:
    machine.edge("identity", "create", "soft", "--vault", f"software:{tmp_path}/keys")
    done = machine.edge("hsm", "attest", "soft", *NONCE, "--out", tmp_path / "out", good=False)
    assert "is in no token" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_wrong_pin_comes_to_the_tpm_once(machine: Machine, tmp_path: Path) -> None:
    token = machine.token
    before = token.wrong_pins()
    try:
        token.write_pin("wrong-pin-1")
        for _ in range(3):
            done = machine.edge(
                "hsm", "attest", "gateway", *NONCE, "--out", tmp_path / "out", good=False
            )
            assert "wrong-pin-1" not in done.stderr + done.stdout
        assert token.wrong_pins() == before + 1
    finally:
        token.write_pin(token.pin)
        token.clear_lockout()
    machine.edge("hsm", "attest", "gateway", *NONCE, "--out", tmp_path / "out")


def test_the_pin_is_in_no_command_line(machine: Machine, tmp_path: Path) -> None:
    """Every process started below the command, by the kernel's word."""
    if shutil.which("strace") is None:
        pytest.skip(
            "STRACE IS NOT INSTALLED: started processes are not watched (apt-get install strace)"
        )
    log = tmp_path / "log"
    command = ["strace", "-f", "-e", "trace=execve", "-s", "10000", "-v", "-o", log]
    command += [sys.executable, "-m", "edge", "hsm", "attest", "gateway", *NONCE]
    import os  # noqa: PLC0415

    variables = {**os.environ, **machine.token.variables, "OCKAM_HOME": str(machine.home)}
    subprocess.run(
        [*command, "--out", tmp_path / "out"], env=variables, cwd=ROOT, check=True, timeout=50,
        capture_output=True,
    )  # fmt: skip
    text = log.read_text()
    assert "execve(" in text
    assert machine.token.pin not in text


# --- without a TPM


def test_arguments_are_read() -> None:
    assert attest.parse_pcrs("sha256:7,0+sha1:3") == [
        Selection(SHA1, (3,)), Selection(SHA256, (0, 7)),
    ]  # fmt: skip
    assert attest.parse_pcr("sha1:3=" + "ab" * 20) == (("sha1", 3), b"\xab" * 20)
    assert attest.parse_nonce("AB" * 16) == b"\xab" * 16


@pytest.mark.parametrize(
    "text", ["", "sha256", "sha256:", "md5:1", "sha256:32", "sha256:1+sha256:2"]
)
def test_a_bad_choice_of_pcrs_is_a_usage_error(text: str) -> None:
    with pytest.raises(click.BadParameter):
        attest.parse_pcrs(text)


@pytest.mark.parametrize("text", ["", "sha256:7", "sha256:7=00", "sha9:7=" + "00" * 32])
def test_a_bad_pcr_value_is_a_usage_error(text: str) -> None:
    with pytest.raises(click.BadParameter):
        attest.parse_pcr(text)


@pytest.mark.parametrize("text", ["", "ab" * 15, "ab" * 65, "xy" * 16, "a" * 33])
def test_a_bad_nonce_is_a_usage_error(text: str) -> None:
    with pytest.raises(click.BadParameter):
        attest.parse_nonce(text)


def test_the_history_must_be_of_the_key() -> None:
    key = PublicKey(KeyKind.P256, forge.ID.point())
    sign = lambda data: forge.sign(forge.ID_KEY, data)  # noqa: E731
    history = create(key, sign, valid_from=0, valid_until=1)
    identifier = str(history.identifier)
    good = attest.check_history(identifier, history.encoded, key.value)
    assert good.startswith(identifier)
    for wrong in (
        ("I" + "00" * 32, history.encoded, key.value),
        (identifier, history.encoded, forge.AK.point()),
        (identifier, history.encoded + b"\0", key.value),
        (identifier, history.encoded[:-1], key.value),
        (identifier, b"", key.value),
        ("", history.encoded, key.value),
    ):
        with pytest.raises(Refused):
            attest.check_history(*wrong)


def test_nothing_of_this_is_loaded_by_a_node_or_another_command() -> None:
    code = (
        "import sys, edge.node.service, edge.cli.main, edge.cli.vault, vault_backends\n"
        "sys.exit(any(name.startswith('vault_backends.tpm') or name == 'edge.cli.attest'"
        " for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=50)
