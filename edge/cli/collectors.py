"""What `diag` collects, each by a function that asks one thing: of the machine, and of our nodes.

A collector gives a text, or a value for JSON. It asks for no PIN and changes nothing; it may fail or
hang.
"""

import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from edge import __version__
from edge.cli.redaction import GONE, is_secret_name
from edge.cli.units import UNITS
from edge.config.document import Items, Table, Text, Value, read_document
from edge.errors import EdgeError
from edge.node.home import Home
from edge.node.store import Store

CONFIGURATION = Path("/etc/ockam-edge")
TAIL = 128 * 1024
"""Bytes of the end of each log."""
LINES = 1000
"""Lines of the journal."""
CONNECT = 3.0
"""Seconds that a hub has to accept a connection."""
DISTRIBUTIONS = (
    "ockam-edge", "asyncpg", "click", "cryptography", "prometheus-client", "pynacl", "pyserial",
    "python-pkcs11", "pyyaml", "systemd-python", "uvloop",
)  # fmt: skip
HIDDEN_SECTIONS = ("ticket", "variables")
"""Of a configuration: keys whose values may be secrets, whatever they are called."""
OURS = ("OCKAM_", "EDGE_", "VAULT_", "SOFTHSM2_", "LANG", "LC_", "TPM2", "YUBIHSM")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
LIMITS = ("NOFILE", "NPROC", "CORE", "MEMLOCK", "AS", "DATA")


class Collector(NamedTuple):
    """`limit` is in seconds: after it, the rest goes on without this one."""

    name: str
    collect: Callable[[Home], Any]
    limit: float = 5.0


def command(*words: str, limit: float = 4.0) -> str:
    """What a command says, on both of its outputs, and how it ended."""
    if shutil.which(words[0]) is None:
        return f"{words[0]} is not installed\n"
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=limit, check=False, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as expired:
        return f"{' '.join(words)}: no answer within {limit:g} s\n{_decoded(expired.stdout)}"
    said = _decoded(done.stdout)
    return said if not done.returncode else f"{said}\n{words[0]} ended with {done.returncode}\n"


def _decoded(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")


def file(path: Path | str, most: int = 64 * 1024) -> str:
    """The end of a file."""
    try:
        with open(path, "rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - most))
            return _decoded(opened.read(most))
    except OSError as error:
        return f"{path}: {error.strerror}\n"


# -- the machine


def versions(home: Home) -> Any:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    found: dict[str, str | None] = {"edge": __version__, "python": sys.version}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found | {"program": sys.argv[0], "interpreter": sys.executable, "home": str(home.root)}


def machine(home: Home) -> str:
    parts = [
        " ".join(platform.uname()),
        file("/etc/os-release"),
        "libc: " + " ".join(platform.libc_ver()),
        "model: " + file("/proc/device-tree/model"),
        f"processors: {os.cpu_count()}, load: {os.getloadavg()}",
        file("/proc/meminfo")[:400],
        "uptime: " + file("/proc/uptime"),
        "virtualisation: " + command("systemd-detect-virt"),
    ]
    return "\n".join(parts)


def environment(home: Home) -> Any:
    """Ours, and proxies, with values; of the rest the names only."""
    shown = {
        name: GONE if is_secret_name(name) else value
        for name, value in os.environ.items()
        if name.startswith(OURS) or name.lower() in PROXIES
    }
    return {"variables": shown, "others": sorted(set(os.environ) - set(shown))}


def addresses(home: Home) -> str:
    return command("ip", "-brief", "address") + "\n" + command("ip", "-statistics", "link")


def routes(home: Home) -> str:
    return "\n".join([command("ip", "route"), command("ip", "-6", "route"), command("ip", "rule")])


def sockets(home: Home) -> str:
    return command("ss", "-tanpo")


def clock(home: Home) -> str:
    floor = "unknown"
    if home.database.exists():
        with closing(Store(home.database)) as store:
            floor = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(store.time_floor()))
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"now: {now}\ntime floor: {floor}\n" + command("timedatectl", "show")


def disk(home: Home) -> str:
    listing = "\n".join(_entry(path) for path in sorted(home.root.rglob("*"))[:500])
    return "\n".join([
        command("df", "-k"), command("df", "-i"), file("/proc/mounts"), f"{home.root}:", listing,
    ])  # fmt: skip


def _entry(path: Path) -> str:
    try:
        found = path.lstat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    return f"{found.st_mode:o} {found.st_uid}:{found.st_gid} {found.st_size:>10} {path}"


def limits(home: Home) -> Any:
    """Of this command, and of the nodes that run."""
    ours = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in LIMITS}
    nodes = {
        str(pid): {
            "limits": file(f"/proc/{pid}/limits"),
            "status": file(f"/proc/{pid}/status"),
            "descriptors": _count(Path(f"/proc/{pid}/fd")),
        }
        for pid in _processes(home)
    }
    return {"ours": ours, "nodes": nodes, "cgroup": file("/proc/self/cgroup")}


def _count(folder: Path) -> int | str:
    try:
        return len(os.listdir(folder))
    except OSError as error:
        return error.strerror or "unknown"


def _processes(home: Home) -> Iterable[int]:
    for lock in (home.root / "run").glob("*.lock"):
        running = home.running(lock.stem)
        if running is not None and running.pid:
            yield running.pid


def units(home: Home) -> str:
    """Properties that hold no text of ours: an environment may hold a secret."""
    wanted = (
        "Id,LoadState,ActiveState,SubState,Result,ExecMainStatus,ExecMainCode,NRestarts,StatusText,"
        "UnitFileState,FragmentPath,DropInPaths,User,MemoryCurrent,MemoryPeak,TasksCurrent,"
        "ActiveEnterTimestamp,InactiveEnterTimestamp,WatchdogUSec,CPUUsageNSec"
    )
    plain = [unit for unit in UNITS if "@" not in unit]
    state = command("systemctl", "show", *plain, f"--property={wanted}", "--no-pager")
    return command("systemctl", "is-system-running") + state


def journal(home: Home) -> str:
    return command(
        "journalctl", "--identifier=ockam-edge", f"--lines={LINES}", "--output=short-iso-precise",
        "--no-pager", "--quiet",
    )  # fmt: skip


# -- tokens


def tokens(home: Home) -> str:
    """Modules and their tokens, without a PIN, in a process of its own: a module may hang."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    asked = [sys.executable, "-P", "-m", "edge", "hsm", "list", "--output", "json", "--no-input"]
    return command("env", f"PYTHONPATH={path}", *asked, limit=9.0)


def devices(home: Home) -> str:
    found = [
        path
        for name in ("tpm*", "ttyUSB*", "ttyACM*", "hidraw*")
        for path in Path("/dev").glob(name)
    ]
    listed = "\n".join(_entry(path) for path in sorted(found))
    services = command(
        "systemctl", "is-active", "pcscd.socket", "pcscd", "tpm2-abrmd", "yubihsm-connector"
    )
    return f"{listed}\n{services}\n{command('lsusb')}"


# -- ours


def configuration(home: Home) -> Any:
    return {str(path): _configuration(path) for path in sorted(CONFIGURATION.glob("*.y*ml"))}


def _configuration(path: Path) -> Any:
    try:
        return _plain(read_document(file(path), path.name))
    except EdgeError as error:
        return f"cannot be read, and is left out: {str(error)[:200]}"


def _plain(value: Value) -> Any:
    """Without what is or may be secret."""
    if isinstance(value, Table):
        return {key.value: _hidden(key, said) for key, said in value.rows}
    if isinstance(value, Items):
        return [_plain(item) for item in value.items]
    return value.value


def _hidden(key: Text, value: Value) -> Any:
    if key.value == "variables" and isinstance(value, Table):
        return {name.value: GONE for name, _ in value.rows}
    hidden = key.value in HIDDEN_SECTIONS or is_secret_name(key.value)
    return GONE if hidden else _plain(value)


def store(home: Home) -> Any:
    """What is written down; of credentials and sealed secrets only that they are there."""
    if not home.database.exists():
        return "there is no store"
    with closing(Store(home.database)) as opened:
        nodes = opened.nodes()
        return {
            "vaults": [one._asdict() for one in opened.vaults()],
            "identities": [
                {
                    "name": one.name,
                    "identifier": one.identifier,
                    "vault": one.vault,
                    "kind": one.kind,
                }
                for one in opened.identities()
            ],
            "unsettled": [one._asdict() for one in opened.unsettled()],
            "nodes": [
                {
                    "name": one.name,
                    "identity": one.identity,
                    "listener": one.listener,
                    "wanted": one.wanted,
                    "settings": sorted(one.settings),
                    "resources": [thing._asdict() for thing in opened.resources(one.name)],
                    "policies": opened.policies(one.name),
                }
                for one in nodes
            ],
            "projects": [{"name": one.name, "id": one.id} for one in opened.projects()],
            "credentials": [
                {"subject": one.subject, "issuer": one.issuer, "expires_at": one.expires_at}
                for one in opened.credentials()
            ],
            "sealed": {
                one.name: opened.sealed_names(one.identifier) for one in opened.identities()
            },
            "peers": len(opened.peers()),
        }


def shows(home: Home) -> Any:
    """`node show` of each node that runs."""
    from edge.cli.client import Client  # noqa: PLC0415

    found: dict[str, Any] = {}
    for lock in sorted((home.root / "run").glob("*.lock")):
        running = home.running(lock.stem)
        if running is None:
            found[lock.stem] = "does not run"
            continue
        try:
            found[lock.stem] = Client(lock.stem, running.socket, timeout=2.0).get("/node")
        except EdgeError as error:
            found[lock.stem] = str(error)
    return found


def states(home: Home) -> Any:
    from edge.cli.status import everything  # noqa: PLC0415

    return everything(None)


def logs(home: Home) -> str:
    files = sorted((home.root / "log").glob("*.log"))
    return "\n".join(f"==> {path}\n{file(path, TAIL)}" for path in files) or "there is no log"


# -- the way to the hubs


def names(home: Home) -> str:
    """How names are resolved, and what they resolve to."""
    parts = [file("/etc/resolv.conf"), file("/etc/nsswitch.conf"), file("/etc/hosts")]
    for host, port in hubs(home):
        began = time.monotonic()
        try:
            found = sorted({str(one[4][0]) for one in socket.getaddrinfo(host, port)})
        except (OSError, UnicodeError) as error:
            found = [str(error)]
        parts.append(f"{host}: {', '.join(found)} ({time.monotonic() - began:.3f} s)")
    return "\n".join(parts)


def paths(home: Home) -> str:
    """Whether hubs accept a connection; nothing is said to them."""
    return "\n".join(f"{host}:{port} {_reached(host, port)}" for host, port in hubs(home)) or "none"


def _reached(host: str, port: int) -> str:
    began = time.monotonic()
    try:
        socket.create_connection((host, port), CONNECT).close()
    except (OSError, UnicodeError) as error:
        return f"{error} ({time.monotonic() - began:.3f} s)"
    return f"accepts ({time.monotonic() - began:.3f} s)"


def hubs(home: Home) -> list[tuple[str, int]]:
    """Where routes of relays, inlets and projects lead."""
    import re  # noqa: PLC0415

    if not home.database.exists():
        return []
    with closing(Store(home.database)) as opened:
        texts = [one.model for one in opened.projects()]
        texts += [str(one.spec) for node in opened.nodes() for one in opened.resources(node.name)]
    route = re.compile(r"/(?:ip4|ip6|dnsaddr|dns4|dns6)/([^/'\"\s]+)/tcp/(\d+)")
    return sorted({(host, int(port)) for text in texts for host, port in route.findall(text)})[:8]


COLLECTORS = (
    Collector("versions.json", versions),
    Collector("machine.txt", machine),
    Collector("environment.json", environment),
    Collector("configuration.json", configuration),
    Collector("store.json", store),
    Collector("status.json", states, 8.0),
    Collector("nodes.json", shows, 8.0),
    Collector("logs.txt", logs),
    Collector("journal.txt", journal),
    Collector("tokens.json", tokens, 10.0),
    Collector("devices.txt", devices),
    Collector("addresses.txt", addresses),
    Collector("routes.txt", routes),
    Collector("sockets.txt", sockets),
    Collector("names.txt", names, 8.0),
    Collector("paths.txt", paths, 10.0),
    Collector("clock.txt", clock),
    Collector("disk.txt", disk),
    Collector("limits.json", limits),
    Collector("units.txt", units),
)


def as_text(found: Any) -> str:
    """As it stands in the bundle."""
    return (
        found
        if isinstance(found, str)
        else json.dumps(found, indent=2, sort_keys=True, default=_shown)
    )


def _shown(value: Any) -> str:
    """Bytes may be a secret."""
    return (
        f"{len(value)} bytes" if isinstance(value, bytes | bytearray | memoryview) else str(value)
    )
