"""Runs the simulated device until it is told to stop, and prints its two ports as JSON.

python -m tests.tokens.yubihsm [--idle SECONDS] [--user ID:PASSWORD:CAPABILITY,CAPABILITY...|all]
"""

import argparse
import json
import signal
import threading

from tests.tokens.yubihsm.connector import Connector, Control
from tests.tokens.yubihsm.constants import ALL_CAPABILITIES, ALL_DOMAINS, Capability
from tests.tokens.yubihsm.device import IDLE_SECONDS, Device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS)
    parser.add_argument("--user", action="append", default=[], help="a further authentication key")
    given = parser.parse_args()
    device = Device(idle_seconds=given.idle)
    for user in given.user:
        _add_user(device, user)
    connector = Connector(device)
    connector.up()
    control = Control(connector)
    threading.Thread(target=control.serve_forever, daemon=True).start()
    print(json.dumps({"port": connector.port, "control": control.server_port}), flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


def _add_user(device: Device, text: str) -> None:
    key_id, password, names = text.split(":")
    able = ALL_CAPABILITIES if names == "all" else 0
    for name in filter(None, names.split(",") if not able else ()):
        able |= Capability[name.upper().replace("-", "_")]
    device.store.add_authentication_key(
        int(key_id, 16), password, domains=ALL_DOMAINS, capabilities=able, delegated=able
    )


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
