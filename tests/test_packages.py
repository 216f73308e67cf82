"""What `make deb` is told fits what the project says; the packages themselves are in tests/boot."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "systemd/deb/lock.txt").read_text()
NO_WHEELS = ("systemd-python",)
"""edge/node/notify.py does without."""


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower()


def pins(text: str) -> dict[str, tuple[int, ...]]:
    found = re.findall(r"^([a-z0-9-]+)==([0-9.]+)", text, re.M)
    return {name: tuple(map(int, version.split("."))) for name, version in found}


def least(requirement: str) -> tuple[int, ...]:
    found = re.search(r">=([0-9.]+)", requirement)
    assert found is not None, requirement
    return tuple(map(int, found[1].split(".")))


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_every_dependency_is_locked(requirement: str) -> None:
    """Else: python systemd/deb/wheels.py"""
    gateway = LOCK.partition("# hub\n")[0]
    if name_of(requirement) in NO_WHEELS:
        assert name_of(requirement) not in pins(gateway)
    else:
        assert pins(gateway)[name_of(requirement)] >= least(requirement)


def test_what_only_a_hub_needs_is_not_on_a_gateway() -> None:
    gateway, _, hub = LOCK.partition("# hub\n")
    for requirement in PROJECT["optional-dependencies"]["postgresql"]:
        assert pins(hub)[name_of(requirement)] >= least(requirement)
        assert name_of(requirement) not in pins(gateway)


@pytest.mark.parametrize("script", ["launcher", "postinst", "prerm", "postrm"])
def test_scripts_stop_at_the_first_failure(script: str) -> None:
    lines = (ROOT / "systemd/deb" / script).read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    assert {"set -e", "set -eu"} & set(lines)
