"""`diag`: one file for whoever is to help: what this machine is and does, without its secrets."""

import io
import os
import tarfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge import __version__
from edge.cli import local
from edge.cli.main import Command
from edge.cli.output import Result, done, note
from edge.errors import ConfigError
from edge.node.home import Home

if TYPE_CHECKING:
    from edge.cli.collectors import Collector
    from edge.cli.redaction import Redaction

ABOUT = """What `ockam-edge diag` collected, version {version}, at {now}.

Secrets were taken out: PINs, passphrases, tickets, codes, credentials, keys, passwords in URLs, the
values of variables of a configuration, and whatever looks like one; "<removed>" stands there.
Identifiers, names and addresses are in it: read it before you hand it on.

"""
LARGEST = 4 * 1024 * 1024
"""Bytes of one file in the bundle; the end of a longer one counts."""


@click.command("diag", cls=Command)
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(dir_okay=False))
def diag(file: str | None) -> Result:
    """Collect what helps to find a fault into FILE, a tar.gz without secrets. Takes at most 15 seconds,
    also when nothing answers."""
    path = Path(file or time.strftime("ockam-edge-diag-%Y%m%d-%H%M%S.tar.gz", time.gmtime()))
    opened = _opened(path)
    try:
        found = collected(Home.of_environment())
        with os.fdopen(opened, "wb") as output:
            output.write(_bundle(found))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    late = [name for name, text in found.items() if text.startswith(LATE)]
    if late:
        note(f"no answer in time: {', '.join(late)}")
    text = done(f"{path}: {len(found) - 1} collected") + "\n    read it before you hand it on"
    return Result(text=text, machine=str(path), json={"file": str(path), "late": late})


def _opened(path: Path) -> int:
    """A new file, for this user only. Nothing is replaced."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} is there already", hint="name another file") from None
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}", hint="name a file in a folder of yours"
        ) from None


LATE = "no answer within "


class Work:
    """One collector in a thread of its own, which is left behind if it hangs."""

    def __init__(self, collector: "Collector", home: Home) -> None:
        self.collector = collector
        self.seconds: float | None = None
        self._home = home
        self._found: Any = None
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=collector.name, daemon=True)
        self._thread.start()

    def text(self) -> str:
        """What was found, until its limit."""
        from edge.cli.collectors import as_text  # noqa: PLC0415

        until = self._began + self.collector.limit
        self._thread.join(max(0.0, until - time.monotonic()))
        if self.seconds is None:
            return f"{LATE}{self.collector.limit:g} s\n"
        return as_text(self._found)

    def _run(self) -> None:
        try:
            self._found = self.collector.collect(self._home)
        except Exception as error:  # whatever is broken here is what we are to tell of
            self._found = f"could not be collected: {type(error).__name__}: {error}\n"
        self.seconds = time.monotonic() - self._began


def collected(home: Home) -> dict[str, str]:
    """The texts by their names in the bundle, all at the same time, without secrets."""
    from edge.cli.collectors import COLLECTORS  # noqa: PLC0415

    redaction = _redaction()
    work = [Work(collector, home) for collector in COLLECTORS]
    found = {one.collector.name: redaction.text(one.text()[-LARGEST:]) for one in work}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    times = "".join(f"{one.collector.name:20} {_took(one)}\n" for one in work)
    return {"about.txt": ABOUT.format(version=__version__, now=now) + times, **found}


def _took(work: Work) -> str:
    return "no answer" if work.seconds is None else f"{work.seconds:.2f} s"


def _redaction() -> "Redaction":
    """With what can be known to be secret here: from the environment, and from URIs of vaults."""
    from edge.cli.redaction import Redaction, secrets_of  # noqa: PLC0415

    texts: list[str] = []
    try:
        with local.store() as store:
            texts = [vault.uri for vault in store.vaults()]
    except Exception as error:  # a broken store is no reason to have no bundle
        note(f"the store cannot be read: {error}")
    return Redaction(secrets_of(os.environ, texts))


def _bundle(found: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as bundle:
        for name, text in found.items():
            data = text.encode("utf-8", "replace")
            entry = tarfile.TarInfo(f"ockam-edge-diag/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            bundle.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
