"""Vaults to test: software ones, a throwaway SoftHSM token, and any URI given by --vault-uri."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vault_backends import open_vault
from vault_backends.vault import Key, Kind, Vault

ROOT = Path(__file__).parents[2]
SOFTHSM = next(
    (
        path
        for path in ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")
        if Path(path).exists() and shutil.which("softhsm2-util")
    ),
    None,
)
PIN = "123456"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vault-uri", action="append", default=[], help="also test this vault")


@dataclass
class SoftToken:
    """A SoftHSM token in a folder of its own."""

    folder: Path
    module: str
    label: str = "edge"

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    @property
    def files(self) -> Path:
        """Where the token keeps its objects; away, the token is unplugged."""
        return next(path for path in (self.folder / "tokens").iterdir() if path.is_dir())

    def uri(self, path: str = "token=edge", query: str = "") -> str:
        return f"pkcs11:{path}?module-path={self.module}" + (
            query or f"&pin-source=file:{self.pin_file}"
        )

    def init(self, label: str) -> None:
        command = ["softhsm2-util", "--init-token", "--free", "--label", label]
        subprocess.run(
            [*command, "--so-pin", "12345678", "--pin", PIN], check=True, capture_output=True
        )

    def tool(self, *arguments: str) -> str:
        command = ["pkcs11-tool", "--module", self.module, "--token-label", self.label]
        return subprocess.run(
            [*command, "--login", "--pin", PIN, *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout


@pytest.fixture
def soft_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftToken]:
    if SOFTHSM is None:
        pytest.skip("SOFTHSM IS NOT INSTALLED: PKCS#11 is not tested (apt-get install softhsm2)")
    from vault_backends.pkcs11 import module  # noqa: PLC0415  # loads python-pkcs11

    folder = tmp_path / "token"
    (folder / "tokens").mkdir(parents=True, mode=0o700)
    conf = folder / "softhsm2.conf"
    conf.write_text(
        f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    # SoftHSM reads it while it starts, so the library must be down before and after.
    module.stop_all()
    monkeypatch.setenv("SOFTHSM2_CONF", str(conf))
    token = SoftToken(folder, SOFTHSM)
    token.init("edge")
    token.pin_file.write_text(PIN + "\n")
    token.pin_file.chmod(0o600)
    yield token
    for one in module._modules.values():
        one.users.clear()
    module.stop_all()


class ApartUri(str):
    """A URI whose vault is to be opened in a process of its own."""

    __slots__ = ()


OpenVault = Callable[..., Vault]


@pytest.fixture
def opened() -> Iterator[OpenVault]:
    """open_vault, with everything closed at the end of the test."""
    vaults: list[Vault] = []

    def open_one(uri: str, *args: object, **kwargs: object) -> Vault:
        kwargs.setdefault("apart", isinstance(uri, ApartUri))
        vaults.append(open_vault(uri, *args, **kwargs))  # type: ignore[arg-type]
        return vaults[-1]

    yield open_one
    for vault in vaults:
        vault.close()


@pytest.fixture
def vault(soft_token: SoftToken, opened: OpenVault) -> Vault:
    return opened(soft_token.uri())


@pytest.fixture
def key(vault: Vault) -> Key:
    return vault.generate(Kind.ED25519, "identity")


def secret_file(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "vault_uri" in metafunc.fixturenames:
        given = metafunc.config.getoption("vault_uri", default=[])
        names = ["software-key", "software-passphrase", "softhsm", "softhsm-apart", *given]
        ids = [*names[:4], *(f"given{n}" for n in range(len(given)))]
        metafunc.parametrize("vault_uri", names, indirect=True, ids=ids)


@pytest.fixture
def vault_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty vault, or of the one that was given."""
    if request.param == "software-key":
        return f"software:{tmp_path}/keys"
    if request.param == "software-passphrase":
        secret = secret_file(tmp_path / "pass", "correct horse\n")
        return f"software:{tmp_path}/keys?passphrase-source=file:{secret}"
    if request.param in ("softhsm", "softhsm-apart"):
        token: SoftToken = request.getfixturevalue("soft_token")
        return token.uri() if request.param == "softhsm" else ApartUri(token.uri())
    return str(request.param)
