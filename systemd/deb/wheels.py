"""The wheels that go into the packages: pinned by version and hash in lock.txt, fetched by pip for each
architecture and Python, never built.

    python systemd/deb/wheels.py        # writes lock.txt anew from pyproject.toml
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
LOCK = HERE / "lock.txt"
CPU = {"amd64": "x86_64", "arm64": "aarch64"}
PYTHONS = ("3.11", "3.13")
"""Those of Debian 12 and 13."""
GLIBC = ("2_17", "2_24", "2_26", "2_27", "2_28", "2_31")
"""Wheels for a newer glibc than that of Debian 11 are not taken."""
UNBUILT = ("systemd-python",)
"""Has no wheels; edge/node/notify.py does without."""
HUB_EXTRAS = ("postgresql",)
"""What only a hub or an authority needs."""


def fetch(arch: str, python: str, folder: Path, *, hub: bool = False) -> list[Path]:
    """The wheels of lock.txt, as files in `folder`; asks nobody for those that are there."""
    part = _part(hub, folder)
    wanted = re.findall("^[a-z].*==", part.read_text(), re.M)
    locked = set(re.findall("sha256:([0-9a-f]+)", part.read_text()))
    found = [wheel for wheel in sorted(folder.glob("*.whl")) if _digest(wheel) in locked]
    if len(found) != len(wanted):
        _download(arch, python, folder, "--require-hashes", "--no-deps", "-r", str(part))
        found = [wheel for wheel in sorted(folder.glob("*.whl")) if _digest(wheel) in locked]
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _part(hub: bool, folder: Path) -> Path:
    """The lines of lock.txt above or below its mark."""
    gateway, _, more = LOCK.read_text().partition("# hub\n")
    part = folder / "lock.txt"
    part.write_text(more if hub else gateway)
    return part


def _download(arch: str, python: str, folder: Path, *what: str) -> None:
    platforms = [f"manylinux_{glibc}_{CPU[arch]}" for glibc in GLIBC]
    platforms += [f"manylinux2014_{CPU[arch]}", f"linux_{CPU[arch]}"]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
        *(f"--platform={platform}" for platform in platforms), "--dest", str(folder), *what,
    ]  # fmt: skip
    subprocess.run(command, check=True)


def _wanted() -> tuple[list[str], list[str]]:
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    needed = [line for line in project["dependencies"] if not line.startswith(UNBUILT)]
    extras = project.get("optional-dependencies", {})
    return needed, [line for extra in HUB_EXTRAS for line in extras.get(extra, [])]


def _lock() -> None:
    needed, more = _wanted()
    gateway, both = _resolved(needed), _resolved([*needed, *more])
    hub = {pin: hashes for pin, hashes in both.items() if pin not in gateway}
    LOCK.write_text(
        "# Written by systemd/deb/wheels.py. Hashes of every wheel that a package may hold.\n"
        f"{_lines(gateway)}# hub\n{_lines(hub)}"
    )


def _resolved(requirements: list[str]) -> dict[str, set[str]]:
    """name==version -> SHA-256 of its wheels."""
    found: dict[str, set[str]] = defaultdict(set)
    for arch in CPU:
        for python in PYTHONS:
            with tempfile.TemporaryDirectory() as folder:
                _download(arch, python, Path(folder), *requirements)
                for wheel in Path(folder).glob("*.whl"):
                    name, version = wheel.name.split("-")[:2]
                    pin = f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"
                    found[pin].add(_digest(wheel))
    return found


def _lines(pins: dict[str, set[str]]) -> str:
    return "".join(
        f"{pin} \\\n" + " \\\n".join(f"    --hash=sha256:{one}" for one in sorted(pins[pin])) + "\n"
        for pin in sorted(pins)
    )


if __name__ == "__main__":
    _lock()
