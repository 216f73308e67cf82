"""Three network namespaces: a gateway and a client that reach the hub, and not each other."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple


class Network(NamedTuple):
    """Names of namespaces."""

    hub: str
    gateway: str
    client: str


COUNTED = count()
HUB_FOR_GATEWAY, GATEWAY = "10.77.1.1", "10.77.1.2"
HUB_FOR_CLIENT, CLIENT = "10.77.2.1", "10.77.2.2"


@contextmanager
def network() -> Iterator[Network]:
    prefix = f"edge{os.getpid()}-{next(COUNTED)}"
    names = Network(f"{prefix}h", f"{prefix}g", f"{prefix}c")
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _cable(names.hub, HUB_FOR_GATEWAY, "gateway", names.gateway, GATEWAY)
        _cable(names.hub, HUB_FOR_CLIENT, "client", names.client, CLIENT)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _cable(hub: str, hub_address: str, to: str, other: str, address: str) -> None:
    _ip("-n", hub, "link", "add", to, "type", "veth", "peer", "name", "uplink", "netns", other)
    for name, link, at in ((hub, to, hub_address), (other, "uplink", address)):
        _ip("-n", name, "address", "add", f"{at}/24", "dev", link)
        _ip("-n", name, "link", "set", link, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
