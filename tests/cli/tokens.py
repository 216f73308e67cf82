"""Tokens for the tests of `hsm`: SoftHSM and a TPM in software, each in an environment of its own, and
the command in a process of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOFTHSM = next(
    (
        path
        for path in ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")
        if Path(path).exists()
    ),
    None,
)
TPM2 = next(iter(Path("/usr/lib").glob("*/pkcs11/libtpm2_pkcs11.so")), None)
SWTPM = ("swtpm", "swtpm_setup", "tpm2_flushcontext")


@dataclass
class Place:
    """A home, a folder, and the environment that leads to a token."""

    folder: Path
    module: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def pin(self) -> Path:
        return self.folder / "pin"

    @property
    def uri(self) -> str:
        return f"pkcs11:token=gw?module-path={self.module}&pin-source=file:{self.pin}"

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "OCKAM_HOME": str(self.folder / "home"), **self.environment}

    def edge(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edge", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.env,
            timeout=60,
            check=False,
        )

    def out(self, *arguments: str) -> str:
        done = self.edge(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: str) -> str:
        done = self.edge(*arguments)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def init(self) -> str:
        return self.out(
            "hsm", "init", "--module", self.module, "--label", "gw", "--generate-pin", str(self.pin)
        )


def softhsm(folder: Path) -> Place:
    if SOFTHSM is None:
        pytest.skip("SOFTHSM IS NOT INSTALLED: `hsm` is not tested (apt-get install softhsm2)")
    (folder / "tokens").mkdir(mode=0o700)
    conf = folder / "softhsm2.conf"
    conf.write_text(
        f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    return Place(folder, SOFTHSM, {"SOFTHSM2_CONF": str(conf)})


@contextmanager
def swtpm() -> Iterator[Place]:
    """An empty TPM without a resource manager, and an empty store."""
    if TPM2 is None or not all(map(shutil.which, SWTPM)):
        pytest.skip(
            "SWTPM OR TPM2-PKCS11 IS NOT INSTALLED: `hsm` is not tested with a TPM (apt-get install "
            "swtpm swtpm-tools tpm2-tools libtpm2-pkcs11-1 libtss2-tcti-swtpm0)"
        )
    folder = Path(tempfile.mkdtemp(prefix="hsm-"))  # short: the name of a socket is in it
    (folder / "tpm").mkdir(mode=0o700)
    (folder / "store").mkdir(mode=0o700)
    state = f"{folder}/tpm"
    quiet = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    setup = ["swtpm_setup", "--tpm2", "--tpmstate", state, "--overwrite"]
    subprocess.run(setup, check=True, timeout=30, **quiet)
    tpm = subprocess.Popen(
        [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}",
            "--server", f"type=unixio,path={folder}/s", "--ctrl", f"type=unixio,path={folder}/s.ctrl",
            "--flags", "not-need-init,startup-clear",
        ],
        **quiet,
    )  # fmt: skip
    try:
        until = time.monotonic() + 10
        while not (folder / "s").exists() and time.monotonic() < until:
            time.sleep(0.02)
        tcti = f"swtpm:path={folder}/s"
        environment = {
            "TPM2TOOLS_TCTI": tcti,
            "TPM2_PKCS11_TCTI": tcti,
            "TPM2_PKCS11_STORE": f"{folder}/store",
            "TSS2_LOG": "all+NONE",
        }
        yield Place(folder, str(TPM2), environment)
    finally:
        tpm.kill()
        tpm.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
