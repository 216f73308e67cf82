"""Two builds of the packages give the same bytes, whoever builds, when; and what is in them."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.boot.world import Packages, architecture, build

BIGGEST = 6_000_000
"""Bytes of a package."""


def content(package: Path) -> list[str]:
    listed = subprocess.run(
        ["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


@pytest.fixture
def gateway(packages: Packages) -> Path:
    return packages.folder / f"ockam-edge_{packages.version}_{architecture()}.deb"


def test_the_same_bytes_again(packages: Packages, tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        build(tmp_path, packages.version)
    finally:
        os.umask(umask)
    made = sorted(tmp_path.iterdir())
    assert len(made) == 2
    for again in made:
        first = (packages.folder / again.name).read_bytes()
        assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(first).digest()


def test_everything_is_of_root_and_nobody_else_can_write(gateway: Path) -> None:
    for line in content(gateway):
        mode, owner = line.split()[:2]
        assert owner == "root/root", line
        assert mode.startswith("l") or (mode[5], mode[8], mode[3]) == ("-", "-", mode[3]), line
        assert "s" not in mode, line


def test_what_does_not_belong_into_a_package(gateway: Path) -> None:
    names = [line.split()[5] for line in content(gateway)]
    for useless in ("__pycache__", ".pyx", ".pyi", "/tests/", "/pip", "/pycparser/", "/asyncpg/"):
        assert not [name for name in names if useless in name], useless
    assert [name for name in names if name.endswith("/entry_points.txt")] == []


def test_its_size(gateway: Path) -> None:
    assert gateway.stat().st_size < BIGGEST


def test_the_modules_of_both_pythons(gateway: Path) -> None:
    names = [line.split()[5] for line in content(gateway)]
    for module in ("_cffi_backend", "uvloop/loop", "pkcs11/_pkcs11"):
        assert len([name for name in names if f"/{module}.cpython-3" in name]) == 2, module
