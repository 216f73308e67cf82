"""A throwaway TPM 2.0 token: the emulator swtpm below tpm2-pkcs11, without a resource manager."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODULE = Path("/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so")
PROGRAMS = ("swtpm", "swtpm_setup", "pkcs11-tool", "tpm2_flushcontext")
PACKAGES = "swtpm swtpm-tools tpm2-tools libtpm2-pkcs11-1 libtss2-tcti-swtpm0 opensc"
PIN = "123456"


def missing() -> list[str]:
    """What is not installed of it."""
    programs = [name for name in PROGRAMS if shutil.which(name) is None]
    return programs + ([] if MODULE.exists() else [str(MODULE)])


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """A TPM with a token "edge" in it, and the environment that its users need."""
    store, state, socket = folder / "store", folder / "state", folder / "sock"
    store.mkdir(mode=0o700)
    state.mkdir(mode=0o700)
    _run("swtpm_setup", "--tpm2", "--tpmstate", str(state), "--overwrite")
    tpm = subprocess.Popen(
        [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}",
            "--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl",
            "--flags", "not-need-init,startup-clear",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 10
        while not socket.exists():
            assert time.monotonic() < until, "swtpm does not start"
            time.sleep(0.02)
        tcti = f"swtpm:path={socket}"
        environment = {
            "TPM2_PKCS11_STORE": str(store), "TPM2_PKCS11_TCTI": tcti, "TPM2TOOLS_TCTI": tcti,
            "TSS2_LOG": "all+NONE",
        }  # fmt: skip
        _token(environment)
        yield environment
    finally:
        tpm.send_signal(signal.SIGKILL)
        tpm.wait(10)


def _token(environment: dict[str, str]) -> None:
    tool = ["pkcs11-tool", "--module", str(MODULE), "--slot-index", "0", "--so-pin", "so-123456"]
    _run(*tool, "--init-token", "--label", "edge", environment=environment)
    clean(environment)
    as_so = ["--login", "--login-type", "so", "--init-pin", "--pin", PIN]
    _run(*tool, *as_so, environment=environment)
    clean(environment)


def clean(environment: dict[str, str]) -> None:
    """Throw out what others left in the TPM: nobody does it for them here."""
    _run("tpm2_flushcontext", "-t", environment=environment)
    _run("tpm2_flushcontext", "-l", environment=environment)


def _run(*command: str, environment: dict[str, str] | None = None) -> None:
    subprocess.run(
        command, env=os.environ | (environment or {}), check=True, capture_output=True, timeout=60
    )
