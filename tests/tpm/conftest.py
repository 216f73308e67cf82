"""A machine with a TPM: swtpm with a CA of its own, a tpm2-pkcs11 token, and an identity in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tokens.processes import run
from tests.tokens.tpm import ManagedTpm, Tpm

ROOT = Path(__file__).parents[2]
PACKAGES = (*Tpm.packages, "libtss2-tctildr0")


@dataclass
class Machine:
    """The token, the home of ockam-edge beside it, and the CA that signed the TPM's certificates."""

    token: Tpm
    home: Path
    ca: Path

    def edge(self, *arguments: str | Path, good: bool = True) -> subprocess.CompletedProcess[str]:
        """ockam-edge with these arguments; it must succeed, or with good=False, fail."""
        variables = {**self.token.variables, "OCKAM_HOME": str(self.home)}
        command = [sys.executable, "-m", "edge", *arguments]
        done = run(command, variables, check=False, seconds=50)
        assert (done.returncode == 0) is good, done.stderr + done.stdout
        return done

    @property
    def tcti(self) -> str:
        return self.token.variables["TPM2_PKCS11_TCTI"]


def missing() -> str:
    """Why there is no TPM to test with, or nothing."""
    tools = [tool for tool in ("swtpm", "swtpm_setup", "tpm2_getcap") if not shutil.which(tool)]
    if tools or Tpm.missing():
        return (
            f"NO TPM EMULATOR: evidence is not tested live (apt-get install {' '.join(PACKAGES)})"
        )
    return ""


def _local_ca(folder: Path) -> Path:
    """Has swtpm_setup make a CA in `folder`. Returns what XDG_CONFIG_HOME must be for that."""
    ca, config = folder / "ca", folder / "config"
    for made in (ca, config):
        made.mkdir(parents=True, mode=0o700)
    (config / "swtpm-localca.conf").write_text(
        f"statedir = {ca}\nsigningkey = {ca}/signkey.pem\n"
        f"issuercert = {ca}/issuercert.pem\ncertserial = {ca}/certserial\n"
    )
    (config / "swtpm-localca.options").write_text(
        "--platform-manufacturer Example\n--platform-version 1\n--platform-model Gateway\n"
    )
    (config / "swtpm_setup.conf").write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
        f"create_certs_tool_config = {config}/swtpm-localca.conf\n"
        f"create_certs_tool_options = {config}/swtpm-localca.options\n"
        "active_pcr_banks = sha1,sha256\n"
    )
    return config


@contextmanager
def made(kind: type[Tpm], folder: Path) -> Iterator[Machine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(_local_ca(folder)))
        with kind(folder / "token") as token:
            machine = Machine(token, folder / "home", folder / "ca.pem")
            parts = [folder / "ca" / name for name in ("swtpm-localca-rootca-cert.pem",)]
            parts.append(folder / "ca" / "issuercert.pem")
            machine.ca.write_text("".join(part.read_text() for part in parts))
            uri = token.uri(object="gateway")
            machine.edge("identity", "create", "gateway", "--vault", uri)
            yield machine


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if why := missing():
        pytest.skip(why)
    with made(Tpm, tmp_path_factory.mktemp("tpm")) as one:
        yield one


@pytest.fixture(scope="session")
def other_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if why := missing():
        pytest.skip(why)
    with made(Tpm, tmp_path_factory.mktemp("tpm2")) as one:
        yield one


@pytest.fixture(scope="session")
def managed_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    absent = [tool for tool in ("tpm2-abrmd", "dbus-daemon") if not shutil.which(tool)]
    if why := missing() or (
        absent and f"{absent[0]} IS NOT INSTALLED (apt-get install {absent[0]})"
    ):
        pytest.skip(why)
    with made(ManagedTpm, tmp_path_factory.mktemp("abrmd")) as one:
        yield one
