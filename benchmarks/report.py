"""Tables for people, JSON for comparing runs, and what is known about the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first one left, the others right."""
    width = [max(len(row[i]) for row in (head, *lines)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(n) if i == 0 else cell.rjust(n)
            for i, (cell, n) in enumerate(zip(cells, width, strict=True))
        ).rstrip()

    return "\n".join([line(head), "  ".join("-" * n for n in width), *map(line, lines)])


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def machine() -> dict[str, object]:
    """What the numbers depend on."""
    return {
        "name": platform.node(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "load": list(os.getloadavg()),
        "iperf3": _first_line(["iperf3", "--version"]),
        "ssh": _first_line(["ssh", "-V"]),
    }


def save(result: dict[str, object], suffix: str = "", path: Path | None = None) -> Path:
    """Write a result to benchmarks/results/<date>-<machine><suffix>.json, or where told."""
    if path is None:
        RESULTS.mkdir(exist_ok=True)
        day = datetime.now(UTC).strftime("%Y-%m-%d")
        path = RESULTS / f"{day}-{platform.node()}{suffix}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    for key in ("model name", "Model", "Hardware"):
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return platform.processor()


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(done.stdout.splitlines()), "")
