"""Packages of this tree, built once, and machines with them; skipped where no machine can boot."""

import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.boot import roots, world
from tests.boot.machine import missing
from tests.boot.world import Packages, Scene

VERSION, NEWER = "0.0.1", "0.0.2"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(item.path).is_relative_to(Path(__file__).parent)]
    why = missing() if here else None
    for item in here:
        item.add_marker(pytest.mark.boot)
        item.add_marker(pytest.mark.timeout(300))
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=f"no machine can be booted: {why}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the nodes of all machines said lately, with a failure."""
    report = yield
    scene = item.funcargs.get("at")
    if report.failed and isinstance(scene, Scene):
        for machine in scene[:3]:
            report.sections.append((machine.name, machine.said()))
    return report


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    folder = tmp_path_factory.mktemp("debs")
    world.build(folder, VERSION, NEWER)
    return Packages(folder, VERSION, NEWER)


@pytest.fixture(scope="session", params=roots.PACKAGES)
def at(request: pytest.FixtureRequest, packages: Packages) -> Iterator[Scene]:
    """A gateway, a hub and a client, with a tunnel to PostgreSQL and one to sshd."""
    try:
        roots.root(request.param)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no root file system of {request.param}: {error.__notes__}")
    with world.scene(request.param, packages) as scene:
        world.furnish(scene)
        yield scene
