"""`node run` and `node apply`: what a unit calls, with a file that may be there."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.node.home import Home
from tests.cli.test_main import ROOT, edge

TEXT = "identity: me\ntcp-outlet:\n  plc: {to: 502, allow: 'true'}\n"


@contextmanager
def running(home: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """`node run`, until its node can be asked."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edge", "node", "run", *arguments],
        text=True, stderr=subprocess.PIPE, cwd=ROOT, env=os.environ | {"OCKAM_HOME": str(home)},
    )  # fmt: skip
    try:
        until = time.monotonic() + 30
        while (found := Home(home).running("plant")) is None or not found.pid:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.05)
        assert found.pid == process.pid  # the node has taken the place of the command
        yield process
    finally:
        process.terminate()
        process.wait(20)
        assert process.stderr is not None
        process.stderr.close()


def outlets(home: Path) -> list[str]:
    shown = json.loads(edge(home, "node", "show", "plant", "--output", "json").stdout)
    return [bytes(one["worker_addr"]["inner"]).decode() for one in shown["outlets"]]


def test_a_file_makes_the_node_and_what_it_has(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "plant.yaml"
    file.write_text(TEXT)
    with running(home, "--file", str(file)):
        assert outlets(home) == []
        assert edge(home, "node", "apply", "--file", str(file)).returncode == 0
        assert outlets(home) == ["plc"]
    file.unlink()
    with running(home, "--file", str(file)):  # it keeps what it has
        assert "keeps what it has" in edge(home, "node", "apply", "--file", str(file)).stdout
        assert outlets(home) == ["plc"]


def test_a_file_with_mistakes_stops_no_node(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "plant.yaml"
    file.write_text(f"{TEXT}relayy: x\n")
    refused = edge(home, "node", "run", "--file", str(file))
    assert refused.returncode == 70
    assert f"{file}:4:1" in refused.stderr
    assert edge(home, "node", "create", "plant", "--no-start").returncode == 0
    with running(home, "--file", str(file)):
        refused = edge(home, "node", "apply", "--file", str(file))
        assert refused.returncode == 70
        assert f"{file}:4:1" in refused.stderr
        assert outlets(home) == []


def test_there_is_nothing_to_run(tmp_path: Path) -> None:
    refused = edge(tmp_path, "node", "run", "--file", str(tmp_path / "none.yaml"))
    assert refused.returncode == 70
    assert "there is no node" in refused.stderr
    file = tmp_path / "plant.yaml"
    file.write_text(TEXT)
    refused = edge(tmp_path, "node", "apply", "--file", str(file))
    assert "node plant does not run" in refused.stderr


def test_two_wishes_that_exclude_each_other(tmp_path: Path) -> None:
    refused = edge(tmp_path, "node", "create", "n", "--no-start", "--foreground")
    assert refused.returncode == 64
    assert "exclude each other" in refused.stderr
