"""A row per family of tokens: what each does differently from PKCS#11 as written. Data only.

Tried here: SoftHSM 2.6. The other rows carry what was measured with tpm2-pkcs11 1.9 on swtpm, with
Yubico's module on a simulated device, and with NSS 3.87."""

from dataclasses import dataclass

from vault_backends.vault import Kind

# The curve's name as a PrintableString, and its OID. Tokens take one of them; tried in this order.
ED25519_NAME = bytes.fromhex("130c656477617264733235353139")
ED25519_OID = bytes.fromhex("06032b6570")
P256_OID = bytes.fromhex("06082a8648ce3d030107")

BOTH = frozenset(Kind)


@dataclass(frozen=True)
class Profile:
    name: str
    makers: tuple[str, ...]  # found in the manufacturer the module gives, in lower case
    modules: tuple[str, ...] = ()  # where the library usually is
    kinds: frozenset[Kind] = BOTH  # at most; the token's mechanism list decides further
    ed25519_curves: tuple[bytes, ...] = (ED25519_NAME, ED25519_OID)
    omit_public: tuple[str, ...] = ()  # attributes python-pkcs11 adds and this token trips over
    omit_private: tuple[str, ...] = ()
    id_length: int = 20  # of the CKA_ID we give
    longest_label: int = 255
    derive_is_decrypt: bool = False  # a key to derive with needs DECRYPT too
    one_generation: bool = False  # start the library again after each new key
    stale_view: bool = (
        False  # keys of other processes appear only after the library was started again
    )
    late_token: bool = False  # a token absent at start may come later: worth trying again
    unknown_user_error: bool = False  # ObjectHandleInvalid at login means a bad PIN
    attributes_prove: bool = True  # False: they are notes in a database, not the device's word


ROWS = (
    Profile(
        name="softhsm",
        makers=("softhsm",),
        modules=("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"),
    ),
    Profile(
        name="tpm2-pkcs11",
        makers=("tpm2",),
        modules=("/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so",),
        kinds=frozenset({Kind.P256}),
        # It maps VERIFY to the TPM's decrypt bit and SIGN to sign/encrypt, and compares afterwards.
        omit_public=("ENCRYPT", "WRAP", "VERIFY"),
        omit_private=("DECRYPT", "UNWRAP", "DERIVE"),
        derive_is_decrypt=True,
        one_generation=True,
        stale_view=True,
        attributes_prove=False,
    ),
    Profile(
        name="yubihsm",
        makers=("yubico",),
        modules=("/usr/lib/x86_64-linux-gnu/pkcs11/yubihsm_pkcs11.so",),
        ed25519_curves=(ED25519_NAME,),
        # The id is the device's object id; any other length costs a second object beside the key.
        id_length=2,
        longest_label=40,
        late_token=True,
        unknown_user_error=True,
    ),
    Profile(
        name="nss",
        # Wants x-parameters=configdir='sql:/path' ... in the URI.
        makers=("mozilla", "nss"),
        modules=("/usr/lib/x86_64-linux-gnu/libsoftokn3.so",),
        kinds=frozenset({Kind.P256}),
    ),
)

GENERIC = Profile(name="generic", makers=())


def profile_for(manufacturer: str) -> Profile:
    """The row for what the module says of its maker."""
    maker = manufacturer.lower()
    return next((row for row in ROWS if any(word in maker for word in row.makers)), GENERIC)
