"""Builds the Debian packages, for each architecture on any machine: wheels and Python sources, no
compiler. One package serves the Pythons of Debian 12 and 13: compiled modules have the Python in their
names, so that both lie in one folder. Two builds of one tree give the same bytes.

    python systemd/deb/build.py [--arch amd64]... [--version 0.1.0]... [--out dist] [--cache FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import wheels

ROOT = Path(__file__).parents[2]
PARTS = ROOT / "systemd/deb"
UNITS = ROOT / "systemd"
PREFIX = Path("usr/lib/ockam-edge")
SITE = PREFIX / "lib/python3/site-packages"
SYSTEM = Path("usr/lib/systemd/system")
GATEWAY_UNITS = ("ockam-edge.service", "ockam-edge@.service")
HUB_UNITS = ("ockam-edge-hub.service", "ockam-edge-authority.service")
USELESS = re.compile(
    r"(.*\.(pyx|pxd|pxi|c|h|pyi|cpp)$)|(.*/tests?/)|(.*/(RECORD|INSTALLER|REQUESTED|WHEEL|top_level\.txt|entry_points\.txt)$)"
    r"|(cffi/)|(cffi-)|(pycparser/)|(pycparser-)|(serial/tools/)|(.*/_testing\.py$)|(.*\.data/)"
)
"""Of wheels: what only a compiler or a developer reads. Of cffi only its compiled module is used."""
BIGGEST = 6_000_000
"""Bytes of a package: gateways are updated over mobile links."""
CPU = {"amd64": "x86-64", "arm64": "aarch64"}


def main() -> None:
    given = _arguments()
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or _last_change()
    given.out.mkdir(parents=True, exist_ok=True)
    for arch in given.arch or wheels.CPU:
        for version in given.version or [_version()]:
            for package in (Gateway, Hub):
                with tempfile.TemporaryDirectory() as folder:
                    made = package(arch, version, Path(folder), given.cache)
                    print(made.build(int(epoch), given.out))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=list(wheels.CPU))
    parser.add_argument("--version", action="append")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--cache", type=Path, default=ROOT / "build/wheels")
    return parser.parse_args()


def _version() -> str:
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "edge/__init__.py").read_text())
    assert found is not None
    return found[1]


def _last_change() -> str:
    """Seconds: the date of the newest commit, so that one commit is one package."""
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "1700000000"


class Package:
    """A tree of files, and what dpkg is told of it."""

    name: str
    units: tuple[str, ...]
    title: str
    description: str
    conffiles: tuple[str, ...] = ()

    def __init__(self, arch: str, version: str, folder: Path, cache: Path) -> None:
        self.arch, self.version, self.cache = arch, version, cache
        self.stage = folder / "stage"
        self.stage.mkdir(mode=0o755)

    def depends(self) -> str:
        raise NotImplementedError

    def fill(self) -> None:
        raise NotImplementedError

    def build(self, epoch: int, out: Path) -> str:
        """The name of the file, with the sizes."""
        self.fill()
        self._fill_units()
        self._fill_doc()
        size = self._size()
        self._control(size)
        self._tidy()
        self._date(epoch)
        path = out / f"{self.name}_{self.version}_{self.arch}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "--threads-max=1", "--build",
             str(self.stage), str(path)],
            check=True, stdout=subprocess.DEVNULL, env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        )  # fmt: skip
        if path.stat().st_size > BIGGEST:
            raise SystemExit(f"error: {path} has more than {BIGGEST / 1e6:g} MB")
        return f"{path}: {path.stat().st_size / 1e6:.2f} MB, {size / 1024:.1f} MB installed"

    def put(self, text: str | bytes, where: Path | str, mode: int = 0o644) -> None:
        path = self.stage / where
        path.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode() if isinstance(text, str) else text
        if path.exists() and path.read_bytes() != data:
            raise SystemExit(f"error: two different files are to be {where}")
        path.write_bytes(data)
        path.chmod(mode)

    def copy(self, source: Path, where: Path | str, mode: int = 0o644) -> None:
        self.put(source.read_bytes(), where, mode)

    def unpack(self, *, hub: bool) -> None:
        """The wheels of this package, those of all Pythons into one folder."""
        for python in wheels.PYTHONS:
            folder = self.cache / f"{self.arch}-{python}{'-hub' if hub else ''}"
            folder.mkdir(parents=True, exist_ok=True)
            for wheel in wheels.fetch(self.arch, python, folder, hub=hub):
                self._unpack(wheel)

    def _unpack(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            for item in archive.infolist():
                if not item.is_dir() and not USELESS.match(item.filename):
                    self._put_module(archive.read(item), SITE / item.filename)

    def _put_module(self, data: bytes, where: Path) -> None:
        """Wheels of two Pythons differ in their metadata, of which the first is as good."""
        if "dist-info" in str(where) and (self.stage / where).exists():
            return
        self.put(_stripped(data, self.arch) if ".so" in where.name else data, where)

    def _fill_units(self) -> None:
        for unit in self.units:
            self.copy(UNITS / unit, SYSTEM / unit)
            self.copy(UNITS / "common.conf", SYSTEM / f"{unit}.d/10-common.conf")

    def _fill_doc(self) -> None:
        doc = Path("usr/share/doc") / self.name
        self.copy(PARTS / "copyright", doc / "copyright")
        self.copy(ROOT / "CHANGELOG.md", doc / "CHANGELOG.md")

    def _tidy(self) -> None:
        """Whatever the umask of who builds."""
        for path in [self.stage, *self.stage.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)

    def _size(self) -> int:
        """KiB."""
        files = [path for path in self.stage.rglob("*") if not path.is_symlink() and path.is_file()]
        return sum(-(-path.stat().st_size // 4096) * 4 for path in files)

    def _control(self, size: int) -> None:
        fields = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": self.arch,
            "Maintainer": "ockam-edge maintainers <ockam-edge@example.org>",
            "Installed-Size": str(size),
            "Depends": self.depends(),
            "Section": "net",
            "Priority": "optional",
            "Description": f"{self.title}\n{self.description}",
        }
        if self.name == "ockam-edge":
            fields["Suggests"] = "softhsm2, libtpm2-pkcs11-1, tpm-udev"
        sums = "".join(f"{_md5(path)}  {name}\n" for name, path in self._files())
        self.put("".join(f"{key}: {value}\n" for key, value in fields.items()), "DEBIAN/control")
        self.put(sums, "DEBIAN/md5sums")
        if self.conffiles:
            self.put("".join(f"/{name}\n" for name in self.conffiles), "DEBIAN/conffiles")
        for script in ("postinst", "prerm", "postrm"):
            text = (PARTS / script).read_text()
            units = " ".join(unit for unit in self.units if "@" not in unit)
            text = text.replace("@PACKAGE@", self.name).replace("@UNITS@", units)
            self.put(text, f"DEBIAN/{script}", 0o755)

    def _files(self) -> list[tuple[str, Path]]:
        files = {str(path.relative_to(self.stage)): path for path in self.stage.rglob("*")}
        return [
            (name, path)
            for name, path in sorted(files.items())
            if path.is_file() and not path.is_symlink() and not name.startswith("DEBIAN/")
        ]

    def _date(self, epoch: int) -> None:
        for path in [self.stage, *self.stage.rglob("*")]:
            os.utime(path, (epoch, epoch), follow_symlinks=False)


class Gateway(Package):
    name = "ockam-edge"
    units = GATEWAY_UNITS
    title = "tunnels from small Linux devices, with the identity key in hardware"
    description = (
        " Connects a TCP service on a device to those who may use it, from anywhere, without a\n"
        " listening port on the device. The identity key can live in a PKCS#11 token."
    )

    def depends(self) -> str:
        oldest, newest = wheels.PYTHONS[0], wheels.PYTHONS[-1]
        after = f"3.{int(newest.partition('.')[2]) + 1}"
        return f"python3 (>= {oldest}), python3 (<< {after}), libc6 (>= 2.31), util-linux"

    def fill(self) -> None:
        self.unpack(hub=False)
        self._sources()
        self._python()
        self.copy(PARTS / "launcher", "usr/bin/ockam-edge", 0o755)
        self.copy(UNITS / "ockam-edge.sysusers", "usr/lib/sysusers.d/ockam-edge.conf")
        self.copy(UNITS / "ockam-edge.tmpfiles", "usr/lib/tmpfiles.d/ockam-edge.conf")
        for path in sorted((UNITS / "dropins").iterdir()):
            self.copy(path, f"usr/share/ockam-edge/dropins/{path.name}")
        self.copy(UNITS / "README.md", "usr/share/doc/ockam-edge/README.md")

    def _sources(self) -> None:
        for package in ("edge", "vault_backends"):
            for path in sorted((ROOT / package).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    self.copy(path, SITE / path.relative_to(ROOT))

    def _python(self) -> None:
        """The folder looks like a virtual environment to the Python of the system, whichever it is."""
        self.put("home = /usr/bin\ninclude-system-site-packages = false\n", PREFIX / "pyvenv.cfg")
        self.copy(PARTS / "entry", PREFIX / "bin/ockam-edge", 0o755)
        (self.stage / PREFIX / "bin/python3").symlink_to("/usr/bin/python3")
        for python in wheels.PYTHONS:
            (self.stage / PREFIX / f"lib/python{python}").symlink_to("python3")


class Hub(Package):
    name = "ockam-edge-hub"
    units = HUB_UNITS
    title = "hub and authority of a fleet of ockam-edge gateways"
    description = (
        " Units for a hub, where gateways and clients meet, and for the authority of a fleet, and\n"
        " what only they need."
    )

    def depends(self) -> str:
        return f"ockam-edge (= {self.version})"

    def fill(self) -> None:
        self.unpack(hub=True)


@cache
def _stripped(data: bytes, arch: str) -> bytes:
    """A shared object without what only a debugger reads."""
    tool = shutil.which(f"{wheels.CPU[arch]}-linux-gnu-strip")
    if tool is None:
        package = f"binutils-{CPU[arch]}-linux-gnu"
        raise SystemExit(f"error: no strip for {arch}\nhint: apt-get install {package}")
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        subprocess.run([tool, "--strip-unneeded", file.name], check=True)
        return Path(file.name).read_bytes()


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
