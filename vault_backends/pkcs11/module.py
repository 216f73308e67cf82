"""One PKCS#11 library in this process: how it starts and stops, and what it gave out."""

import atexit
import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pkcs11
from pkcs11 import _pkcs11

from vault_backends.pkcs11.paths import check_path
from vault_backends.vault import DeviceGone, Misconfigured, VaultError

_OS_LOCKING_OK = 2
_ALREADY_INITIALIZED = 0x191
# Places in CK_FUNCTION_LIST, counted in pointers; the version fills the first.
_INITIALIZE, _FINALIZE, _GET_SESSION_INFO, _LOGOUT = 1, 2, 16, 20
_USER_STATES = (1, 3)  # read-only and read-write user functions: logged in


class _Arguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS, with NSS's text in the place where others want a null pointer."""

    _fields_ = [
        ("create", ctypes.c_void_p),
        ("destroy", ctypes.c_void_p),
        ("lock", ctypes.c_void_p),
        ("unlock", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("parameters", ctypes.c_char_p),
        ("reserved", ctypes.c_void_p),
    ]


class _SessionInfo(ctypes.Structure):
    _fields_ = [
        ("slot", ctypes.c_ulong),
        ("state", ctypes.c_ulong),
        ("flags", ctypes.c_ulong),
        ("error", ctypes.c_ulong),
    ]


class _Library(_pkcs11.lib):
    """python-pkcs11's library, started with locking. It passes NULL to C_Initialize and lets go of
    the GIL in every call, and on NULL SoftHSM and tpm2-pkcs11 leave their mutexes out: two threads
    crash the process. `initialize` is called by the inherited constructor too."""

    def __new__(cls, so: str, dll: ctypes.CDLL, parameters: str | None) -> Self:
        return super().__new__(cls, so)  # type: ignore[call-arg]  # Cython takes the path

    def __init__(self, so: str, dll: ctypes.CDLL, parameters: str | None) -> None:
        self._parameters = parameters
        self._up = False
        self._list = ctypes.POINTER(ctypes.c_void_p)()
        if dll.C_GetFunctionList(ctypes.byref(self._list)):
            raise pkcs11.GeneralError("C_GetFunctionList failed")
        super().__init__(so)

    def function(self, place: int, *arguments: Any) -> Any:
        return ctypes.CFUNCTYPE(ctypes.c_ulong, *arguments)(self._list[place])

    def initialize(self) -> None:
        if self._up:
            return
        text = self._parameters.encode() if self._parameters is not None else None
        arguments = _Arguments(flags=_OS_LOCKING_OK, parameters=text)
        code = self.function(_INITIALIZE, ctypes.c_void_p)(ctypes.addressof(arguments))
        if code not in (0, _ALREADY_INITIALIZED):
            raise pkcs11.GeneralError(f"C_Initialize failed with 0x{code:x}")
        self._up = True

    def finalize(self) -> None:
        if self._up:
            self._up = False
            # The answer does not matter: a device that is gone says GeneralError, and is gone.
            self.function(_FINALIZE, ctypes.c_void_p)(None)

    def log_out(self, session: Any) -> None:
        """The login of every session of that token ends, at the device too."""
        self.function(_LOGOUT, ctypes.c_ulong)(session.handle)

    def logged_in(self, session: Any) -> bool:
        info = _SessionInfo()
        call = self.function(_GET_SESSION_INFO, ctypes.c_ulong, ctypes.c_void_p)
        return call(session.handle, ctypes.addressof(info)) == 0 and info.state in _USER_STATES


class Module:
    """A library, once per process and path: C_Initialize is for the process, so are logins.

    Sessions and objects die when it stops; `generation` tells those who hold some. The lock is for
    the whole library; findings of others say that not even good locking inside makes two threads
    faster."""

    def __init__(self, path: str, parameters: str | None = None) -> None:
        self.path = path
        self.parameters = parameters
        self.generation = 0
        self.sessions: dict[int, Any] = {}  # slot -> the one logged-in session of this process
        self.users: set[object] = set()
        self.forked = False
        self._lock = threading.RLock()
        self._library: _Library | None = None

    @property
    def library(self) -> _Library:
        assert self._library is not None, "start() comes first"
        return self._library

    @contextmanager
    def held(self) -> Iterator[None]:
        # Before the lock: in a child of fork another thread's copy of it may be held for ever.
        self.check_fork()
        with self._lock:
            yield

    def check_fork(self) -> None:
        if self.forked:
            raise VaultError(
                f"the PKCS#11 module {self.path} must not be used after fork()",
                hint="start helpers with exec or spawn, and open the vault in them",
            )

    def start(self) -> None:
        with _at_root():
            if self._library is None:
                self._library = self._load()
            else:
                self._library.initialize()

    def _load(self) -> _Library:
        try:
            dll = ctypes.CDLL(self.path)
            dll.C_GetFunctionList  # noqa: B018  # AttributeError, before python-pkcs11 finds out
            return _Library(self.path, dll, self.parameters)
        except (OSError, AttributeError) as error:  # no library, or not one of PKCS#11
            raise Misconfigured(f"{self.path} does not load as PKCS#11: {error}") from None
        except pkcs11.PKCS11Error as error:
            raise DeviceGone(
                f"the PKCS#11 module {self.path} does not start: {error}",
                hint="is the device connected, and is the module configured (SOFTHSM2_CONF, "
                "TPM2_PKCS11_STORE, yubihsm_pkcs11.conf)?",
            ) from error

    def stop(self) -> None:
        """Let everything go. Logged out first: YubiHSM's C_Finalize leaves the session open at the
        device, which has 16 of them and closes one only after 30 idle seconds."""
        for session in self.sessions.values():
            self.library.log_out(session)
        self.sessions.clear()
        self.generation += 1
        if self._library is not None:
            self._library.finalize()

    def leave(self, user: object) -> None:
        """`user` needs the library no more; the last one stops it."""
        if self.forked:  # the library belongs to the parent
            return
        with self._lock:
            self.users.discard(user)
            if not self.users:
                self.stop()

    def tokens(self) -> list[Any]:
        """The tokens that are there. A slot that does not answer counts as empty: SoftHSM lists
        the slot of a token whose files are gone, and says GeneralError when asked about it."""
        found = []
        for slot in self.library.get_slots():
            try:
                token = slot.get_token()
            except pkcs11.PKCS11Error:
                continue
            if token.flags & pkcs11.TokenFlag.TOKEN_INITIALIZED:
                found.append(token)
        return found


@contextmanager
def _at_root() -> Iterator[None]:
    """In the folder `/` for the time. Yubico's module takes a yubihsm_pkcs11.conf from where it is
    started, before the one that was named to it, and tpm2-pkcs11 a store: in /tmp anybody's."""
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir("/")
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


_modules: dict[str, Module] = {}
_modules_lock = threading.Lock()


def module_at(path: str, parameters: str | None = None) -> Module:
    """The one Module of this path. The path is checked every time: loading a module is loading
    code."""
    real = check_path(path)
    with _modules_lock:
        if not _modules:
            os.register_at_fork(after_in_child=_poison)
            atexit.register(stop_all)
        module = _modules.setdefault(real, Module(path, parameters))
    module.check_fork()
    if module.parameters != parameters:
        raise Misconfigured(f"{path} is in use with other x-parameters")
    return module


def _poison() -> None:
    for module in _modules.values():
        module.forked = True


def stop_all() -> None:
    for module in _modules.values():
        if not module.forked:
            module.stop()
