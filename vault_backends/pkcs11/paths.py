"""Where PKCS#11 modules lie, which of them a name means, and whether one may be loaded: loading a
module is loading code, so only root may have put it there."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vault_backends.owners import way
from vault_backends.pkcs11.profiles import LIBRARIES, ROWS
from vault_backends.vault import Misconfigured, NotFound, Refused

P11_KIT = (Path("/etc/pkcs11/modules"), Path("/usr/share/p11-kit/modules"))


def find_module(name: str) -> str:
    """The library that `module-name` means (RFC 7512: no path, no lib, no .so). It is looked for
    among the rows of profiles.py, in p11-kit's module files and in the folders of modules, in this
    order. NotFound lists the names there are; what is found is not checked yet."""
    known = dict(reversed(list(known_modules())))
    found = known.get(name.lower())
    if found is None:
        there = ", ".join(sorted(known)) or "none"
        raise NotFound(
            f"there is no PKCS#11 module called {name!r}. Installed: {there}",
            hint="install it (Debian: softhsm2, libtpm2-pkcs11-1), or give module-path=",
        )
    return found


def known_modules() -> Iterator[tuple[str, str]]:
    """(name in lower case, path) of the modules that are installed. One may come several times."""
    yield from registered_modules()
    for folder in map(Path, LIBRARIES):
        for file in sorted((folder / "pkcs11").glob("*.so")):
            yield _bare(str(file)), str(file)


def registered_modules() -> Iterator[tuple[str, str]]:
    """Those that a row of profiles.py or p11-kit knows to be of tokens."""
    for row in ROWS:
        for path in filter(os.path.isfile, row.modules):
            yield row.name, path
            yield _bare(path), path
    for folder in P11_KIT:
        yield from _configured(folder)


def _bare(path: str) -> str:
    return Path(path).name.removeprefix("lib").partition(".so")[0].lower()


def _configured(folder: Path) -> Iterator[tuple[str, str]]:
    """What p11-kit's files name. A file that others than root can change names nothing: it says
    which code is loaded."""
    for file in sorted(folder.glob("*.module")):
        try:
            check_root_owned(folder, "the folder")
            check_root_owned(file, "the file")
            lines = [line.partition(":") for line in file.read_text(errors="replace").splitlines()]
        except (Refused, OSError):
            continue
        said = {key.strip(): value.strip() for key, _, value in lines}
        named = said.get("module")
        if named and said.get("trust-policy") != "yes":  # certificates, no token
            paths = [named] if named.startswith("/") else [f"{f}/pkcs11/{named}" for f in LIBRARIES]
            for path in filter(os.path.isfile, paths):
                yield file.stem.lower(), path
                yield _bare(path), path


def check_path(path: str) -> str:
    """The real path. Only root may have put a library where we load it from, or be able to swap
    it: every folder on the way and every link is looked at. Refused, NotFound or Misconfigured."""
    if not path.startswith("/"):
        raise Misconfigured(f"the module-path must be absolute, not {path!r}")
    real = os.path.realpath(path)
    if not os.path.isfile(real):
        raise NotFound(
            f"there is no PKCS#11 module at {path}",
            hint="install it (Debian: softhsm2, libtpm2-pkcs11-1) or correct module-path",
        )
    check_root_owned(Path(real), "the module")
    for step in _steps(path):
        folder = step.parent.resolve()
        check_root_owned(folder, "the folder")
        for above in folder.parents:
            # In a sticky folder (/tmp) nobody can move what belongs to root.
            check_root_owned(above, "the folder", sticky=True)
    return real


def _steps(path: str) -> Iterator[Path]:
    """The file, and each link on the way to it."""
    yield Path(os.path.realpath(path))
    for step, link in way(Path(path)):
        if not link:
            continue
        if step.lstat().st_uid != 0:
            raise Refused(
                f"the link {step} belongs to user {step.lstat().st_uid}, not to root: "
                "it says which code is loaded",
                hint="give the path that it leads to",
            )
        yield step


def check_root_owned(path: Path, what: str, *, sticky: bool = False) -> None:
    found = path.stat()
    if found.st_uid != 0:
        raise Refused(
            f"{what} {path} belongs to user {found.st_uid}, not to root: a PKCS#11 module is code",
            hint="install the module in a folder that only root can change",
        )
    if found.st_mode & 0o022 and not (sticky and found.st_mode & stat.S_ISVTX):
        raise Refused(
            f"{what} {path} can be changed by others (mode {stat.S_IMODE(found.st_mode):04o}): "
            "a PKCS#11 module is code",
            hint=f"chmod go-w {path}",
        )
