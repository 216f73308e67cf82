"""The TPM row that needs Debian 13: tpm2-pkcs11 1.9.1 there, 1.9.0 in Debian 12. The root file system
is made, and tests are run in it, by `trixie.sh`."""

from __future__ import annotations

from pathlib import Path

from tests.tokens.tpm import Tpm


class Tpm13(Tpm):
    name = "TPM, tpm2-pkcs11 1.9.1"
    slug = "swtpm13"
    about = (
        "tpm2-pkcs11 1.9.1 of Debian 13; the TPM is the emulator swtpm, without a resource manager"
    )

    @classmethod
    def missing(cls) -> str:
        version = Path("/etc/debian_version")
        if version.exists() and version.read_text().startswith("13."):
            return super().missing()
        return "TPM2-PKCS11 1.9.1 IS IN DEBIAN 13 ONLY (trixie.sh)"
