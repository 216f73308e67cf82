"""The way to a TPM: the TCTI libraries of tpm2-tss, whose few C functions are called through ctypes.

tpm2-pkcs11 reaches its TPM through them too, so they are there wherever it is, and the same text
says where: `device:/dev/tpmrm0`, `swtpm:host=…,port=…`, `tabrmd:…`. Interface: TCG TSS 2.0 TPM
Command Transmission Interface (TCTI) API, §3; the loader's is in tss2_tctildr.h."""

import ctypes
import os
from ctypes import byref, c_char_p, c_int32, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p

from vault_backends.vault import DeviceGone, Misconfigured

LIBRARY = "libtss2-tctildr.so.0"
LONGEST_ANSWER = 4096  # the largest response buffer that the TSS defines
PATIENCE = 120_000  # milliseconds; a slow chip may look for the primes of an RSA key that long
_BLOCK = -1
_BAD_VALUE = 0x000B  # TSS2_BASE_RC_BAD_VALUE: this transport knows no time limit

_Transmit = ctypes.CFUNCTYPE(c_uint32, c_void_p, c_size_t, c_char_p)
_Receive = ctypes.CFUNCTYPE(c_uint32, c_void_p, ctypes.POINTER(c_size_t), c_void_p, c_int32)


class _Context(ctypes.Structure):
    """TSS2_TCTI_CONTEXT_COMMON_V1, as far as it is used."""

    _fields_ = (
        ("magic", c_uint64), ("version", c_uint32), ("transmit", _Transmit), ("receive", _Receive),
    )  # fmt: skip


class Tcti:
    """An open way to one TPM."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._context = ctypes.POINTER(_Context)()
        self._library = _load()
        code = self._library.Tss2_TctiLdr_Initialize(name.encode(), byref(self._context))
        if code:
            raise DeviceGone(
                f"no TPM answers at {self.name} (TSS error {code:#x})",
                hint="give --tcti, or set TPM2_PKCS11_TCTI: device:/dev/tpmrm0 on most machines",
            )

    def exchange(self, command: bytes) -> bytes:
        """Send one command, return the response. DeviceGone when either does not get through."""
        there = self._context.contents
        if code := there.transmit(self._context, len(command), command):
            raise DeviceGone(f"{self.name} takes no command (TSS error {code:#x})")
        answer, size = (c_uint8 * LONGEST_ANSWER)(), c_size_t(LONGEST_ANSWER)
        code = there.receive(self._context, byref(size), answer, PATIENCE)
        if code & 0xFFFF == _BAD_VALUE:
            code = there.receive(self._context, byref(size), answer, _BLOCK)
        if code:
            raise DeviceGone(f"{self.name} gave no answer (TSS error {code:#x})")
        return bytes(answer[: size.value])

    def close(self) -> None:
        if self._context:
            self._library.Tss2_TctiLdr_Finalize(byref(self._context))


def _load() -> ctypes.CDLL:
    # What goes wrong is said by our errors; the libraries would write it to stderr line by line.
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise Misconfigured(
            f"{LIBRARY} is not installed, and without it no TPM can be reached",
            hint="apt-get install libtss2-tctildr0 (and libtss2-tcti-device0 on newer systems)",
        ) from None
    library.Tss2_TctiLdr_Initialize.argtypes = (c_char_p, c_void_p)
    library.Tss2_TctiLdr_Initialize.restype = c_uint32
    library.Tss2_TctiLdr_Finalize.argtypes = (c_void_p,)
    library.Tss2_TctiLdr_Finalize.restype = None
    return library
