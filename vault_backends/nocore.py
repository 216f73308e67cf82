"""No core dump of a process that holds secrets, and no debugger of the same user."""

import ctypes
import resource
from contextlib import suppress

_PR_SET_DUMPABLE = 4


def keep_no_core() -> None:
    """For the rest of this process; a program that it starts sets the second half for itself."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
