"""The units as systemd reads them: how much they expose, and that nothing in them is misspelt. What a
running one does is in tests/boot."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[1] / "systemd"
NAMES = sorted(path.name for path in UNITS.glob("*.service"))
WORST = 1.3
"""Of `systemd-analyze security`, where 10 is no protection at all."""
NEWER = ("RestartSteps", "RestartMaxDelaySec")
"""Since systemd 254; older ones warn of them."""

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="install the Debian package systemd"
)


def analyze(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", f"--root={root}", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def system(root: Path, dropin: str | None = None) -> Path:
    """A root with the units as they are installed."""
    folder = root / "etc/systemd/system"
    for name in NAMES:
        drops = folder / f"{name}.d"
        drops.mkdir(parents=True)
        shutil.copy(UNITS / name, folder)
        shutil.copy(UNITS / "common.conf", drops / "10-common.conf")
        if dropin is not None:
            shutil.copy(UNITS / "dropins" / dropin, drops)
    return root


def score(root: Path, unit: str) -> float:
    said = analyze(root, "security", "--offline=yes", unit.replace("@", "@x")).stdout
    return float(said.strip().splitlines()[-1].rpartition(": ")[2].split()[0])


@pytest.mark.parametrize("unit", NAMES)
@pytest.mark.parametrize("dropin", [None, *sorted(p.name for p in (UNITS / "dropins").iterdir())])
def test_the_score(unit: str, dropin: str | None, tmp_path: Path) -> None:
    assert score(system(tmp_path, dropin), unit) <= WORST


def test_the_score_tells_a_sandbox_from_none(tmp_path: Path) -> None:
    root = system(tmp_path)
    (root / "etc/systemd/system/ockam-edge.service.d/10-common.conf").unlink()
    assert score(root, "ockam-edge.service") > 9


@pytest.mark.parametrize("unit", NAMES)
def test_nothing_is_misspelt(unit: str, tmp_path: Path) -> None:
    said = analyze(system(tmp_path), "security", "--offline=yes", unit.replace("@", "@x")).stderr
    assert not [line for line in said.splitlines() if not any(key in line for key in NEWER)]


def test_the_sandbox_is_the_same_text_for_all() -> None:
    for name in NAMES:
        text = (UNITS / name).read_text()
        assert "\nUser=" not in text
        assert "\nExecStart=/usr/lib/ockam-edge/bin/ockam-edge node run " in text
