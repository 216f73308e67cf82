"""TPM 2.0: tpm2-pkcs11 over the emulator swtpm, straight and behind the resource manager.

Straight is harder than a real device: nobody frees what a killed process leaves in the TPM, which the
kernel's /dev/tpmrm0 does. Sockets are files in the folder, so no port is needed."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.tokens.environments import SO_PIN, Environment, Outage
from tests.tokens.processes import end, run, start, until
from vault_backends.vault import Kind

MOST_TRIES = 32


class Tpm(Environment):
    name = "TPM, swtpm"
    slug = "swtpm"
    about = "tpm2-pkcs11 1.9.0 of Debian 12 on the emulator swtpm 0.7, no resource manager"
    kinds = frozenset({Kind.P256})
    packages = (
        "swtpm", "swtpm-tools", "tpm2-tools", "libtpm2-pkcs11-1", "libtss2-tcti-swtpm0", "opensc",
    )  # fmt: skip
    module = Path("/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so")
    outage_names = ("swtpm killed", "swtpm shut down")
    keeps_loaded_keys = True
    crowded = True

    def set_up(self) -> None:
        self.tpm: subprocess.Popen[bytes] | None = None
        self.socket = self.folder / "tpm.sock"
        self.state = self.folder / "state"
        self.store = self.folder / "store"
        for made in (self.state, self.store):
            made.mkdir(mode=0o700)
        run(["swtpm_setup", "--tpm2", "--tpmstate", self.state, "--create-ek-cert", "--overwrite"])
        self.power_on()
        self.start_manager()
        tcti = self.tcti()
        self.variables |= {
            "TPM2_PKCS11_STORE": str(self.store),
            "TPM2_PKCS11_TCTI": tcti,
            "TPM2TOOLS_TCTI": tcti,
            "TSS2_LOG": "all+NONE",
        }
        limits = [f"--max-tries={MOST_TRIES}", "--recovery-time=600", "--lockout-recovery-time=600"]
        self.tpm_tool("tpm2_dictionarylockout", "--setup-parameters", *limits)
        self.add_token(self.label)

    def tear_down(self) -> None:
        end(getattr(self, "tpm", None), orderly=False)

    def tcti(self) -> str:
        return self.straight_tcti()

    def straight_tcti(self) -> str:
        return f"swtpm:path={self.socket}"

    def start_manager(self) -> None:
        """The resource manager, where there is one."""

    def power_on(self) -> None:
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}"]
        command += ["--server", f"type=unixio,path={self.socket}"]
        command += ["--ctrl", f"type=unixio,path={self.socket}.ctrl"]
        command += ["--flags", "not-need-init,startup-clear"]
        for left in (self.socket, Path(f"{self.socket}.ctrl")):
            left.unlink(missing_ok=True)
        self.tpm = start(command, self.folder / "tpm.log")
        until("swtpm", lambda: self.socket.exists() and Path(f"{self.socket}.ctrl").exists(), 10)

    def power_off(self) -> None:
        end(self.tpm, orderly=False)

    def shut_down(self) -> None:
        """As an orderly power-off does, so that the TPM counts no wrong PIN for it."""
        variables = {**self.variables, "TPM2TOOLS_TCTI": self.straight_tcti()}
        run(["tpm2_shutdown", "--clear"], variables, check=False, seconds=20)
        self.power_off()

    @property
    def outages(self) -> Mapping[str, Outage]:
        return {
            "swtpm killed": Outage("swtpm killed", self.power_off, self.power_on),
            "swtpm shut down": Outage("swtpm shut down", self.shut_down, self.power_on),
        }

    def add_token(self, label: str) -> None:
        tool = ["pkcs11-tool", "--module", str(self.module)]
        pins = {**self.variables, "SO_PIN": SO_PIN, "TOOL_PIN": self.pin}
        slot = self._free_slot()
        so_pin = ["--so-pin", "env:SO_PIN"]
        run([*tool, "--init-token", "--slot", slot, "--label", label, *so_pin], pins)
        self.clean()
        as_so = ["--token-label", label, "--login", "--login-type", "so", *so_pin]
        run([*tool, *as_so, "--init-pin", "--pin", "env:TOOL_PIN"], pins)
        self.clean()

    def _free_slot(self) -> str:
        """The slot after the last token is always an empty one."""
        listed = run(
            ["pkcs11-tool", "--module", self.module, "--list-slots"], self.variables
        ).stdout
        slots = [line for line in listed.splitlines() if line.startswith("Slot ")]
        number = slots[-1].partition("(")[2].partition(")")[0]
        self.clean()
        return str(int(number, 16))

    def clean(self) -> None:
        for what in ("--transient-object", "--loaded-session"):
            self.tpm_tool("tpm2_flushcontext", what)

    def tpm_tool(self, *command: str, check: bool = True) -> str:
        return run(command, self.variables, check=check, seconds=20).stdout

    def wrong_pins(self) -> int:
        """What the TPM's dictionary attack counter says."""
        said = self.tpm_tool("tpm2_getcap", "properties-variable")
        line = next(one for one in said.splitlines() if "LOCKOUT_COUNTER" in one)
        return int(line.partition(":")[2], 0)

    def clear_lockout(self) -> None:
        self.tpm_tool("tpm2_dictionarylockout", "--clear-lockout")


class ManagedTpm(Tpm):
    """The bus stays when the manager restarts: clients keep their connection to it."""

    name = "TPM, tpm2-abrmd"
    slug = "abrmd"
    about = (
        "the same behind the resource manager tpm2-abrmd 3.0, nearest to the kernel's /dev/tpmrm0"
    )
    packages = (*Tpm.packages, "tpm2-abrmd", "libtss2-tcti-tabrmd0", "dbus")

    crowded = False
    outage_names = (*Tpm.outage_names, "tpm2-abrmd restarted")

    bus: subprocess.Popen[bytes] | None = None
    manager: subprocess.Popen[bytes] | None = None

    def tcti(self) -> str:
        return "tabrmd:bus_type=session"

    def start_manager(self) -> None:
        if self.bus is None:
            address = f"unix:path={self.folder}/bus"
            command = [
                "dbus-daemon",
                "--session",
                "--nofork",
                "--nopidfile",
                f"--address={address}",
            ]
            self.bus = start(command, self.folder / "bus.log")
            self.variables["DBUS_SESSION_BUS_ADDRESS"] = address
            until("the bus", (self.folder / "bus").exists, 10)
        command = ["tpm2-abrmd", "--session", "--allow-root", "--flush-all"]
        command += [f"--tcti={self.straight_tcti()}"]
        self.manager = start(command, self.folder / "manager.log", self.variables)
        random = ["tpm2_getrandom", "--tcti", self.tcti(), "--hex", "8"]
        until(
            "tpm2-abrmd",
            lambda: run(random, self.variables, check=False, seconds=20).returncode == 0,
            20,
        )

    def tear_down(self) -> None:
        end(self.manager)
        super().tear_down()
        end(self.bus)

    def end_manager(self) -> None:
        end(self.manager)

    def power_off(self) -> None:
        """The manager holds the only connection: without it the TPM is off for everybody."""
        super().power_off()
        end(self.manager, orderly=False)

    def power_on(self) -> None:
        super().power_on()
        if self.bus is not None:
            self.start_manager()

    def shut_down(self) -> None:
        run(["tpm2_shutdown", "--clear"], self.variables, check=False, seconds=20)
        self.power_off()

    @property
    def outages(self) -> Mapping[str, Outage]:
        manager = Outage("tpm2-abrmd restarted", self.end_manager, self.start_manager)
        return {**super().outages, manager.name: manager}

    def clean(self) -> None:
        """The manager does it."""
