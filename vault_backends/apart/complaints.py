"""What a module writes to stderr: kept out of the way, bounded, and without the PIN.

Modules write there on failures that they handled, and some of them, told to, write everything. The
pipe is never full for them: what does not fit is lost. A line that holds the PIN, as text or in hex,
is left out whole.
"""

import os
import re
from contextlib import suppress

from vault_backends.uri import read_secret
from vault_backends.vault import VaultError

LINES, WIDTH = 20, 300
"""Of one call at most, and characters of a line."""
_PIPE = 65_536
# What libc and Python say of their own death; nothing else is believed to be free of secrets.
_LAST_WORDS = re.compile(
    r"(free|malloc|realloc|munmap_chunk|corrupted|double free|terminate called|Fatal Python error"
    r"|.*: Assertion .* failed|\*\*\*)"
)


class Complaints:
    """In the process of the vault: takes what stands in the pipe behind its own stderr."""

    def __init__(self, fd: int) -> None:
        self.source: str | None = None
        """Where the PIN is, if a file has it."""
        self.secrets: set[str] = set()
        self._fd = fd
        os.set_blocking(fd, False)

    def take(self) -> list[str]:
        """The lines since the last time."""
        text = drained(self._fd)
        if not text:
            return []
        self._learn_secret()
        lines = [line for line in text.splitlines() if line.strip()]
        if not self.secrets and self.source is not None:
            return [f"({len(lines)} lines were left out: the PIN to look for cannot be read)"]
        kept = [shown(line) if self._harmless(line) else "(it held the PIN)" for line in lines]
        more = len(kept) - LINES
        return kept[:LINES] + ([f"({more} more lines)"] if more > 0 else [])

    def _learn_secret(self) -> None:
        if self.source is not None:
            with suppress(VaultError):
                self.secrets.add(read_secret(self.source))

    def _harmless(self, line: str) -> bool:
        digits = re.sub(r"0x|[^0-9a-f]", "", line.lower())
        return not any(secret in line or secret.encode().hex() in digits for secret in self.secrets)


def last_words(fd: int) -> str:
    """What a process that crashed said of it, if that can hold no secret."""
    lines = [line for line in drained(fd).splitlines() if _LAST_WORDS.match(line)]
    return shown(lines[-1]) if lines else ""


def drained(fd: int) -> str:
    """What stands in a pipe that does not block."""
    try:
        return os.read(fd, _PIPE).decode(errors="replace")
    except OSError:
        return ""


def shown(line: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in line[:WIDTH])
