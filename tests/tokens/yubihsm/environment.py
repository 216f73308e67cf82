"""The YubiHSM 2 as a row of the matrix: the module is Yubico's own, the device behind it simulated.

Debian 12 has no such module: `trixie.sh` runs this row in a Debian 13 root."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.tokens.environments import Environment, Outage
from tests.tokens.yubihsm.simulator import Simulator
from vault_backends.vault import Kind

MODULE = Path("/usr/lib/x86_64-linux-gnu/pkcs11/yubihsm_pkcs11.so")


class YubiHsm(Environment):
    name = "YubiHSM 2, simulated"
    slug = "yubihsm"
    about = "yubihsm_pkcs11 2.6 of Debian 13 is real, the device behind it is simulated"
    kinds = frozenset(Kind)
    packages = ("yubihsm-pkcs11", "opensc")
    module = MODULE
    label = "YubiHSM"
    pair_is_one = True
    tool_usage = ("--usage-sign",)
    outage_names = ("connector down", "connector without device", "device rebooted")

    @classmethod
    def missing(cls) -> str:
        return "" if cls.module.exists() else f"{cls.module} IS IN DEBIAN 13 ONLY (trixie.sh)"

    def set_up(self) -> None:
        password = secrets.token_hex(8)
        self.simulator: Simulator | None = Simulator(f"0002:{password}:all")
        # The four digits of the authentication key's id, then the password.
        self.pin = f"0002{password}"
        self.write_pin(self.pin)
        self.simulator.configure(self.folder / "yubihsm_pkcs11.conf")
        self.variables["YUBIHSM_PKCS11_CONF"] = str(self.folder / "yubihsm_pkcs11.conf")

    def tear_down(self) -> None:
        if (simulator := getattr(self, "simulator", None)) is not None:
            simulator.end()

    def clean(self) -> None:
        """A process that was killed leaves its session open at the device for 30 s."""
        self.order(reboot=True)

    @property
    def outages(self) -> Mapping[str, Outage]:
        def outage(name: str, **away: object) -> Outage:
            return Outage(name, lambda: self.order(**away), lambda: self.order(connector="up"))

        down = outage("connector down", connector="down")
        without = outage("connector without device", connector="no-device")
        rebooted = outage("device rebooted", connector="no-device", reboot=True)
        return {one.name: one for one in (down, without, rebooted)}

    def order(self, **orders: object) -> dict[str, Any]:
        """Tell the simulator; see `connector.py`."""
        assert self.simulator is not None
        return self.simulator.order(**orders)

    def counted(self, name: str) -> int:
        assert self.simulator is not None
        return self.simulator.counted(name)
