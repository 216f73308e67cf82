"""Who can say what a path leads to: the owners of the folders and links on the way.

Whoever can write to a folder on the way, or owns a link there, chooses which file is opened, also
between a check of that file and its use. A file that is ours is no answer: we have several."""

import stat
from collections.abc import Iterator
from pathlib import Path

from vault_backends.vault import Misconfigured

_LINKS = 40  # as many as the kernel follows


def way(path: Path) -> Iterator[tuple[Path, bool]]:
    """Each folder that the kernel looks into for the absolute `path`, and each link that it follows,
    with True for a link. Not the file at the end. Misconfigured after too many links; OSError where
    it cannot be looked into."""
    left, at, links = list(reversed(path.parts[1:])), Path("/"), 0
    while left:
        yield at, False
        name = left.pop()
        step = at.parent if name == ".." else at / name
        if not step.is_symlink():
            at = step
            continue
        yield step, True
        links += 1
        if links > _LINKS:
            raise Misconfigured(f"{path} leads through too many links")
        to = step.readlink()
        at = Path("/") if to.is_absolute() else at
        left += reversed(to.parts[1:] if to.is_absolute() else to.parts)


def check_way(path: Path, owners: frozenset[int]) -> None:
    """Misconfigured if anybody but `owners` can exchange the file at the absolute `path`. In a sticky
    folder (/tmp) nobody can move what belongs to others. Raises OSError as way() does."""
    seen = set()
    for step, link in way(path):
        if step in seen:
            continue
        seen.add(step)
        found = step.lstat()
        if found.st_uid not in owners:
            what = "link" if link else "folder"
            raise Misconfigured(
                f"{path}: the {what} {step} belongs to user {found.st_uid}, who can put another "
                "file there",
                hint="keep it in a folder of root's" + _or_of(owners),
            )
        if not link and found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise Misconfigured(
                f"{path}: others can put another file into the folder {step} "
                f"(mode {stat.S_IMODE(found.st_mode):04o})",
                hint=f"chmod go-w {step}",
            )


def _or_of(owners: frozenset[int]) -> str:
    others = [str(uid) for uid in sorted(owners) if uid]
    return f", or of user {', '.join(others)}" if others else ""
