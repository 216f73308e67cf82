"""The fault-injecting PKCS#11 module (shim.c): built once, scripted and read from Python."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("shim.c")


class Call(NamedTuple):
    """One finished call, as the shim wrote it down. `began` is seconds of CLOCK_MONOTONIC."""

    began: float
    pid: int
    function: str
    session: int
    result: str
    seconds: float


@cache
def functions() -> tuple[str, ...]:
    """The names of PKCS#11 2.40 in the order of its list, which is that of the counts."""
    return tuple(re.findall(r"X\((C_\w+), ", SOURCE.read_text()))


def build(folder: Path) -> Path:
    """Compile the shim into a folder of root's."""
    library = folder / "shim.so"
    if not library.exists():
        flags = ("-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-fvisibility=hidden")
        command = ["gcc", *flags, "-o", str(library), str(SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
    return library


class Shim:
    """A copy of the library in a folder of its own, in front of one real module."""

    def __init__(self, library: Path, folder: Path, module: Path) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.path = Path(shutil.copy(library, folder / "shim.so"))
        (folder / "module").write_text(f"{module}\n")
        self._rules: list[str] = []

    def on(
        self, function: str, action: str, argument: int = 0, *, nth: int = 1, always: bool = False
    ) -> None:
        """From now on do `action` at the `nth` call of `function` (`*`: of any); `always` also at
        those after it."""
        number = nth + (0 if function == "*" else self.count(function))
        assert function != "*" or always, "the calls of all functions are not counted together"
        how = "from" if always else "only"
        self._rules.insert(0, f"{function} {number} {how} {action} {argument}")
        self._write()

    def calm(self) -> None:
        """No fault any more."""
        self._rules.clear()
        self._write()

    def _write(self) -> None:
        new = self.folder / "script.new"
        new.write_text("".join(f"{rule}\n" for rule in self._rules))
        os.replace(new, self.folder / "script")

    def count(self, function: str) -> int:
        """How often it was called, by all processes."""
        return self._counts()[functions().index(function)]

    def inside(self, function: str) -> int:
        """Calls that are in it now, or crashed in it."""
        return self._counts()[len(functions()) + functions().index(function)]

    def _counts(self) -> tuple[int, ...]:
        size = 2 * len(functions())
        try:
            data = (self.folder / "counts").read_bytes()
        except FileNotFoundError:
            data = b""
        return struct.unpack(f"<{size}Q", data.ljust(8 * size, b"\0"))

    def calls(self, function: str | None = None) -> list[Call]:
        try:
            lines = (self.folder / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = [_call(line) for line in lines]
        return [call for call in found if function in (None, call.function)]


def _call(line: str) -> Call:
    began, pid, function, session, result, took = line.split()
    return Call(int(began) / 1e6, int(pid), function, int(session), result, int(took) / 1e6)
