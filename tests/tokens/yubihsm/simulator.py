"""The simulated device as a process beside the test: started, made to fail, ended."""

import json
import select
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.tokens.yubihsm.device import IDLE_SECONDS

_CHECKOUT = Path(__file__).parents[3]
_SECONDS = 20.0


class Simulator:
    def __init__(self, *users: str, idle_seconds: float = IDLE_SECONDS) -> None:
        """`users` are further authentication keys: ID:PASSWORD:CAPABILITY,CAPABILITY..."""
        options = [f"--idle={idle_seconds}", *(f"--user={user}" for user in users)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.tokens.yubihsm", *options],
            cwd=_CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        ports = json.loads(self._first_line())
        self.connector = f"http://127.0.0.1:{ports['port']}"
        self._control = f"http://127.0.0.1:{ports['control']}/control"

    def _first_line(self) -> bytes:
        out = self._process.stdout
        assert out is not None
        if not select.select([out], [], [], _SECONDS)[0]:
            self.end()
            raise TimeoutError("the simulator did not start")
        return out.readline()

    def order(self, **orders: Any) -> dict[str, Any]:
        """See `connector.py`; done when this returns."""
        return self._ask(json.dumps(orders).encode())

    def report(self) -> dict[str, Any]:
        return self._ask(None)

    def counted(self, name: str) -> int:
        """How often the device saw this command or gave this error since its start."""
        return int(self.report()["counted"].get(name, 0))

    def configure(self, path: Path) -> None:
        """Write the module's configuration file, for YUBIHSM_PKCS11_CONF."""
        path.write_text(f"connector = {self.connector}\ntimeout = 5\n")

    def end(self) -> None:
        self._process.kill()
        self._process.wait(_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, data: bytes | None) -> dict[str, Any]:
        # Straight, whatever proxy the environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self._control, data, timeout=_SECONDS) as answer:
            said: dict[str, Any] = json.loads(answer.read())
            return said
