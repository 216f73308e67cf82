"""A row per family of tokens: what each does differently from PKCS#11 as written. Data only.

Tried: SoftHSM 2.6, tpm2-pkcs11 1.9 on swtpm, Yubico's module on a simulated device, NSS 3.87. The
rows of `opensc` and `ykcs11` come from their documentation."""

import platform
import sysconfig
from dataclasses import dataclass

from vault_backends.vault import Kind

# The curve's name as a PrintableString, and its OID. Tokens take one of them; tried in this order.
ED25519_NAME = bytes.fromhex("130c656477617264733235353139")
ED25519_OID = bytes.fromhex("06032b6570")
P256_OID = bytes.fromhex("06082a8648ce3d030107")

BOTH = frozenset(Kind)

# Debian's name of this machine's kind of program, in paths. Python knows it where Debian built it.
_TRIPLETS = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "armv7l": "arm-linux-gnueabihf",
    "riscv64": "riscv64-linux-gnu",
}
_TRIPLET: str = sysconfig.get_config_var("MULTIARCH") or _TRIPLETS.get(platform.machine(), "")
LIBRARIES = (*((f"/usr/lib/{_TRIPLET}",) if _TRIPLET else ()), "/usr/lib64", "/usr/lib")
"""Folders of libraries: Debian, Fedora, others."""


def _in_libraries(*names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names for folder in LIBRARIES)


@dataclass(frozen=True)
class Profile:
    """One row. Each default is what the standard says."""

    name: str
    """Also what module-name in a vault URI may be."""
    makers: tuple[str, ...]
    """One of these is in the manufacturer that the module gives of itself, in lower case."""
    describes: str = ""
    """This is in the module's description of itself too: Yubico makes modules for two families."""
    modules: tuple[str, ...] = ()
    """Where the library may be, on this machine; the first that exists."""
    tried: bool = True
    """False: the row was written from documentation."""
    kinds: frozenset[Kind] = BOTH
    """At most; the token's list of mechanisms decides further."""
    ed25519_curves: tuple[bytes, ...] = (ED25519_NAME, ED25519_OID)
    """CKA_EC_PARAMS to make an Ed25519 key with, in the order to try."""
    omit_public: tuple[str, ...] = ()
    """Attributes that python-pkcs11 adds to new public keys and this token trips over."""
    omit_private: tuple[str, ...] = ()
    id_length: int = 20
    """Bytes of the CKA_ID that we give."""
    longest_label: int = 255
    """Bytes of CKA_LABEL."""
    longest_ed25519: int | None = None
    """Bytes that EdDSA takes, which hashes in the token."""
    derive_is_decrypt: bool = False
    """A key to derive with needs DECRYPT too."""
    one_generation: bool = False
    """Start the library again after each new key."""
    few_objects: bool = False
    """The device has room for two or three keys at a time, and says GeneralError for one more;
    starting the library again empties it."""
    stale_view: bool = False
    """Keys of other processes appear only after the library was started again."""
    late_token: bool = False
    """A token that is absent at start may come later: worth trying again."""
    unknown_user_error: bool = False
    """ObjectHandleInvalid at login means a bad PIN."""
    attributes_prove: bool = True
    """False: SENSITIVE and the like are notes in a database, not the device's word."""


ROWS = (
    Profile(
        name="softhsm",
        makers=("softhsm",),
        modules=_in_libraries("softhsm/libsofthsm2.so", "pkcs11/libsofthsm2.so", "libsofthsm2.so"),
    ),
    Profile(
        name="tpm2-pkcs11",
        makers=("tpm2",),
        modules=_in_libraries("pkcs11/libtpm2_pkcs11.so", "libtpm2_pkcs11.so"),
        kinds=frozenset({Kind.P256}),
        # It maps VERIFY to the TPM's decrypt bit and SIGN to sign/encrypt, and compares afterwards.
        omit_public=("ENCRYPT", "WRAP", "VERIFY"),
        omit_private=("DECRYPT", "UNWRAP", "DERIVE"),
        derive_is_decrypt=True,
        one_generation=True,
        few_objects=True,
        stale_view=True,
        attributes_prove=False,
    ),
    Profile(
        name="ykcs11",
        makers=("yubico",),
        describes="piv",
        modules=_in_libraries("libykcs11.so", "libykcs11.so.2", "pkcs11/libykcs11.so"),
        tried=False,
        kinds=frozenset({Kind.P256}),
        # Keys are numbered places on the card.
        id_length=1,
        late_token=True,
    ),
    Profile(
        name="yubihsm",
        makers=("yubico",),
        modules=_in_libraries("pkcs11/yubihsm_pkcs11.so", "yubihsm_pkcs11.so"),
        ed25519_curves=(ED25519_NAME,),
        # The id is the device's object id; any other length costs a second object beside the key.
        id_length=2,
        longest_label=40,
        # One frame, of 2048 bytes before firmware 2.4. A longer message is no clean refusal: the
        # module says "buffer too small" or "bad arguments" up to 4096.
        longest_ed25519=2000,
        late_token=True,
        unknown_user_error=True,
    ),
    Profile(
        name="nss",
        # Wants x-parameters=configdir='sql:/path' ... in the URI.
        makers=("mozilla", "nss"),
        modules=_in_libraries("libsoftokn3.so", "nss/libsoftokn3.so"),
        kinds=frozenset({Kind.P256}),
    ),
    Profile(
        name="opensc",
        makers=("opensc",),
        modules=_in_libraries("opensc-pkcs11.so", "pkcs11/opensc-pkcs11.so"),
        tried=False,
        kinds=frozenset({Kind.P256}),
        longest_label=32,
        late_token=True,  # readers come and go
    ),
)

GENERIC = Profile(name="generic", makers=())


def profile_for(manufacturer: str, description: str = "") -> Profile:
    """The row for what the module says of its maker and of itself."""
    maker, said = manufacturer.lower(), description.lower()
    fits = (
        row for row in ROWS if any(word in maker for word in row.makers) and row.describes in said
    )
    return next(fits, GENERIC)
