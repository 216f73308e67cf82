"""`hsm attest`, `verify-attestation`, `challenge`: proof that an identity's key lives in a TPM."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from edge.cli import local
from edge.cli.arguments import Identifier
from edge.cli.main import Command
from edge.cli.output import Result, done, emit
from edge.errors import ConfigError, EdgeError, TrustError

if TYPE_CHECKING:
    from vault_backends.tpm.attest import Subject
    from vault_backends.tpm.evidence import Verdict
    from vault_backends.tpm.store import StoredKey
    from vault_backends.tpm.structures import Selection
    from vault_backends.uri import Pkcs11Uri
    from vault_backends.vault import Key

_DEFAULT_TCTI = "device:/dev/tpmrm0"  # the kernel's resource manager
_LONGEST_FILE = 1 << 20
_DEFAULT_PCRS = "sha256:0,1,2,3,4,5,6,7"


def parse_nonce(text: str) -> bytes:
    """16 to 64 bytes, from hex."""
    if not re.fullmatch(r"([0-9a-fA-F]{2}){16,64}", text):
        raise click.BadParameter(
            "16 to 64 bytes in hex are needed: openssl rand -hex 32 makes some"
        )
    return bytes.fromhex(text)


def parse_pcrs(text: str) -> "list[Selection]":
    """PCRs as tpm2-tools write them: sha256:0,1,7 or sha1:0+sha256:0."""
    from vault_backends.tpm.structures import HASH_NUMBERS, PCR_LAST, Selection  # noqa: PLC0415

    chosen: dict[str, Selection] = {}
    for part in text.split("+"):
        bank, _, listed = part.partition(":")
        good = bank in HASH_NUMBERS and bank not in chosen
        if not good or not re.fullmatch(r"[0-9]{1,2}(,[0-9]{1,2})*", listed):
            raise click.BadParameter(f"{text[:80]!r} is no choice of PCRs: write sha256:0,1,7")
        indices = {int(one) for one in listed.split(",")}
        if max(indices) > PCR_LAST:
            raise click.BadParameter(f"there is no PCR {max(indices)}")
        chosen[bank] = Selection(HASH_NUMBERS[bank], tuple(sorted(indices)))
    return [chosen[bank] for bank in sorted(chosen)]


def parse_pcr(text: str) -> tuple[tuple[str, int], bytes]:
    """A PCR and the value it must have: sha256:7=HEX."""
    from vault_backends.tpm.structures import DIGEST_BYTES, HASH_NUMBERS  # noqa: PLC0415

    found = re.fullmatch(r"(\w+):([0-9]{1,2})=((?:[0-9a-fA-F]{2})+)", text)
    number = HASH_NUMBERS.get(found[1]) if found else None
    if found is None or number is None or len(found[3]) != 2 * DIGEST_BYTES[number]:
        raise click.BadParameter(
            f"{text[:80]!r} is no PCR value: write sha256:7=HEX, the whole hash"
        )
    return (found[1], int(found[2])), bytes.fromhex(found[3])


file_argument = click.Path(exists=True, dir_okay=False, path_type=Path)
new_file = click.Path(dir_okay=False, path_type=Path)
nonce_option = click.option(
    "--nonce",
    metavar="HEX",
    type=parse_nonce,
    required=True,
    help="What the verifier gave, in hex.",
)
ca_option = click.option(
    "--ca", type=file_argument, required=True, help="Certificates of TPM makers to trust, in PEM."
)


@click.command("attest", cls=Command)
@click.argument("identity", metavar="[IDENTITY|URI]", required=False)
@click.option("--nonce", metavar="HEX", type=parse_nonce, help="What the verifier gave, in hex.")
@click.option(
    "--pcrs", metavar="BANK:N,N…", type=parse_pcrs, default=_DEFAULT_PCRS, show_default=True,
    help="What the quote covers.",
)  # fmt: skip
@click.option("--answer", type=file_argument, help="Answer this challenge instead.")
@click.option("--out", type=new_file, required=True, help="The file to write.")
@click.option("--ek", type=click.Choice(["ecc", "rsa"]), help="Which endorsement key, of several.")
@click.option(
    "--ek-certificate", type=file_argument, help="Its certificate, where the TPM holds none."
)
@click.option("--tcti", help="The TPM; else $TPM2_PKCS11_TCTI, or device:/dev/tpmrm0.")
@click.option(
    "--endorsement-auth", metavar="SOURCE", help="Its password, if any: file:/path or ask."
)
def attest(
    identity: str | None,
    nonce: bytes | None,
    pcrs: "list[Selection]",
    answer: Path | None,
    out: Path,
    ek: str | None,
    ek_certificate: Path | None,
    tcti: str | None,
    endorsement_auth: str | None,
) -> Result:
    """Have the TPM prove that the key of an identity is in it, for a verifier's nonce.

    The verifier makes a challenge from the file (`hsm challenge`), which `hsm attest --answer`
    answers, and checks both with `hsm verify-attestation`."""
    from vault_backends.tpm import attest as tpm  # noqa: PLC0415
    from vault_backends.tpm.chain import given_certificates  # noqa: PLC0415

    if (nonce is None) == (answer is None):
        raise click.UsageError("give --nonce to make evidence, or --answer to answer a challenge")
    auth = _endorsement_auth(endorsement_auth)
    if answer is not None:
        with tpm.opened(_tcti(tcti)) as device:
            data = tpm.answer(device, _read(answer), auth)
        _write(out, data, private=True)
        return Result(text=done(f"the answer is in {out}"), machine=str(out))
    assert nonce is not None
    given = given_certificates(_read(ek_certificate)) if ek_certificate else []
    asked = _subject(identity)
    with tpm.opened(_tcti(tcti)) as device:
        data = tpm.attest(
            device, asked.subject, asked.stored, asked.pin, nonce, pcrs,
            kind=ek, certificates=given, endorsement_auth=auth,
        )  # fmt: skip
    _write(out, data)
    shown = {"file": str(out), "identifier": asked.subject.identifier or None}
    return Result(text=done(f"evidence is in {out}"), machine=str(out), json=shown)


@click.command("verify-attestation", cls=Command)
@click.argument("evidence", type=file_argument)
@ca_option
@nonce_option
@click.option(
    "--pcr", "pcrs", metavar="BANK:N=HEX", type=parse_pcr, multiple=True, help="Insist on a value."
)
@click.option("--identity", type=Identifier(), help="The identifier it must be about.")
@click.option("--answer", type=file_argument, help="The machine's answer to a challenge…")
@click.option("--secret", type=file_argument, help="…and what was kept when that was made.")
@click.option(
    "--unchallenged",
    is_flag=True,
    help="Accept what nobody challenged: it may be made by software.",
)
def verify_attestation(
    evidence: Path,
    ca: Path,
    nonce: bytes,
    pcrs: tuple[tuple[tuple[str, int], bytes], ...],
    identity: str | None,
    answer: Path | None,
    secret: Path | None,
    unchallenged: bool,
) -> Result:
    """Check evidence from `hsm attest`, offline. Fails unless every check passes.

    Only a challenge (`hsm challenge`), with the machine's --answer to it and the --secret that was
    kept, proves that there is a TPM: its certificate is no secret, and software can make all the
    rest."""
    if (answer is None) != (secret is None):
        raise click.UsageError("--answer and --secret go together")
    verdict = _examined(evidence, ca, nonce, dict(pcrs), identity)
    if verdict.evidence is not None and answer is not None and secret is not None:
        verdict = _with_answer(verdict, _read(answer), _read(secret))
    elif verdict.evidence is not None and not unchallenged:
        verdict = _not_answered(verdict)
    report = _report(verdict, unchallenged=unchallenged and answer is None)
    if verdict.failed:
        emit(report)
        names = ", ".join(check.name for check in verdict.failed)
        hint = "challenge the machine: ockam-edge hsm challenge" if answer is None else ""
        raise TrustError(f"the evidence in {evidence} is refused: {names}", hint=hint)
    return report


@click.command("challenge", cls=Command)
@click.argument("evidence", type=file_argument)
@ca_option
@nonce_option
@click.option("--out", type=new_file, required=True, help="The challenge, for the machine.")
@click.option(
    "--secret-out", type=new_file, required=True, help="What the answer must be. Keep it."
)
def challenge(evidence: Path, ca: Path, nonce: bytes, out: Path, secret_out: Path) -> Result:
    """Make a challenge that only the TPM of this evidence can answer (`hsm attest --answer`)."""
    from vault_backends.tpm.evidence import challenge as made  # noqa: PLC0415

    verdict = _examined(evidence, ca, nonce, {}, None)
    if verdict.evidence is None:
        failed = "; ".join(f"{check.name}: {check.said}" for check in verdict.failed)
        raise TrustError(f"the evidence in {evidence} is refused: {failed}")
    blob, kept = made(verdict.evidence)
    _write(secret_out, kept, private=True)
    _write(out, blob)
    return Result(text=done(f"the challenge is in {out}"), machine=str(out))


# --- what the evidence is about


class _Asked(NamedTuple):
    subject: "Subject"
    stored: "StoredKey"
    pin: str


def _subject(identity: str | None) -> _Asked:
    """The identity or key to attest, its blobs, and a PIN that its token has just accepted."""
    from vault_backends.tpm.attest import Subject  # noqa: PLC0415
    from vault_backends.tpm.store import find_key, store_folder  # noqa: PLC0415
    from vault_backends.uri import obtain  # noqa: PLC0415

    if identity is not None and ":" in identity:
        uri, key = _key_of_uri(identity)
        identifier, history, known = "", b"", None
        text = identity
    else:
        from edge.node.identities import load  # noqa: PLC0415

        with local.store() as store:
            mine = load(store, identity)
        uri, key, text = _tpm_uri(mine.uri, f"identity {mine.name}"), mine.key, mine.uri
        identifier, history = str(mine.history.identifier), mine.history.encoded
        known = mine.history.latest.key.value
    ask = _once(local.ask)
    point, token = _logged_in(text, key, ask)
    if known not in (None, point):
        raise TrustError("the key in the token is not the one in the identity's history")
    pin = obtain(uri.pin_source, ask, f"the PIN of token {token}")
    stored = find_key(store_folder(), token, key.label, point)
    return _Asked(Subject(point, identifier, history), stored, pin)


def _key_of_uri(text: str) -> "tuple[Pkcs11Uri, Key]":
    from vault_backends.vault import Key, Kind  # noqa: PLC0415

    uri = _tpm_uri(text, "the key")
    if uri.object is None:
        raise ConfigError(
            "which key?", hint="add ;object=LABEL to the URI; see ockam-edge hsm keys"
        )
    return uri, Key(Kind.P256, uri.object)


def _tpm_uri(text: str, whose: str) -> "Pkcs11Uri":
    from vault_backends.uri import Pkcs11Uri, parse  # noqa: PLC0415

    uri = parse(text)
    if not isinstance(uri, Pkcs11Uri):
        raise ConfigError(f"{whose} is in no token", hint="only a key in a TPM can be attested")
    return uri


def _logged_in(uri: str, key: "Key", ask: Callable[[str], str | None]) -> tuple[bytes, str]:
    """The key's point and its token's label, after a login through the module: it guards the PIN, so
    that a wrong one never comes to the TPM a second time, not even from here."""
    from vault_backends import open_vault  # noqa: PLC0415
    from vault_backends.vault import Attests  # noqa: PLC0415

    vault = open_vault(uri, ask, state_dir=local.home().root)
    try:
        point = vault.public(key)
        told = vault.describe(key) if isinstance(vault, Attests) else {}
    finally:
        vault.close()  # a TPM without a resource manager has room for three objects
    if told.get("profile") != "tpm2-pkcs11":
        raise ConfigError(
            f"token {told.get('token', '')!r} is no TPM that can be asked for evidence",
            hint="keys that tpm2-pkcs11 made can be attested",
        )
    return point, str(told["token"])


def _once(ask: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """`ask`, which gives the first answer again: the person types the PIN once."""
    answers: list[str | None] = []

    def asked(prompt: str) -> str | None:
        if not answers:
            answers.append(ask(prompt))
        return answers[0]

    return asked


def _tcti(given: str | None) -> str:
    """Not wherever the TSS finds something: it would take any program on the simulator's port for a
    TPM."""
    import os  # noqa: PLC0415

    return given or os.environ.get("TPM2_PKCS11_TCTI") or _DEFAULT_TCTI


def _endorsement_auth(source: str | None) -> bytes:
    if source is None:
        return b""
    from vault_backends.uri import obtain  # noqa: PLC0415

    return obtain(source, local.ask, "the password of the endorsement hierarchy").encode()


# --- checking


def _examined(
    evidence: Path,
    ca: Path,
    nonce: bytes,
    pcrs: dict[tuple[str, int], bytes],
    identity: str | None,
) -> "Verdict":
    from vault_backends.tpm.chain import authorities  # noqa: PLC0415
    from vault_backends.tpm.evidence import examine  # noqa: PLC0415

    return examine(
        _read(evidence),
        authorities(_read(ca)),
        nonce,
        now=datetime.now(UTC),
        pcrs=pcrs,
        identifier=identity,
        history=check_history,
    )


def check_history(identifier: str, history: bytes, public_key: bytes) -> str:
    """That the change history is of this identity, and its latest key the attested one."""
    from edge.identity.history import ChangeHistory  # noqa: PLC0415
    from edge.identity.history import Identifier as Parsed  # noqa: PLC0415
    from vault_backends.vault import Refused  # noqa: PLC0415

    if not identifier and not history:
        return "a key without an identity"
    try:
        found = ChangeHistory.decode(history)
        found.verify(Parsed.parse(identifier))
    except EdgeError as error:
        raise Refused(str(error)) from None
    if found.encoded != history or found.latest.key.value != public_key:
        raise Refused("the attested key is not the identity's latest")
    return f"{identifier}, {len(found.changes)} change{'s' * (len(found.changes) > 1)}"


def _with_answer(verdict: "Verdict", answer: bytes, kept: bytes) -> "Verdict":
    from vault_backends.tpm.evidence import Check, Verdict, settled  # noqa: PLC0415
    from vault_backends.vault import Refused  # noqa: PLC0415

    assert verdict.evidence is not None
    try:
        good = settled(verdict.evidence, kept, answer)
        said = "both keys are in one TPM" if good else "the answer is not the secret that was kept"
    except Refused as error:
        good, said = False, str(error)
    checks = [*verdict.checks, Check("activation", good, said)]
    return Verdict(checks, verdict.evidence if good else None)


def _not_answered(verdict: "Verdict") -> "Verdict":
    from vault_backends.tpm.evidence import Check, Verdict  # noqa: PLC0415

    said = "no answer to a challenge: whoever has a TPM's certificate can make such a file"
    return Verdict([*verdict.checks, Check("activation", False, said)], None)


def _report(verdict: "Verdict", *, unchallenged: bool) -> Result:
    rows = [f"  {'✔' if one.passed else '✘'} {one.name:<18} {one.said}" for one in verdict.checks]
    if unchallenged:
        rows.append("  - activation         not asked: whether there is a TPM at all is not known")
    shown: dict[str, Any] = {
        "accepted": not verdict.failed,
        "checks": [
            {"name": one.name, "passed": one.passed, "said": one.said} for one in verdict.checks
        ],
        "activation": any(one.name == "activation" and one.passed for one in verdict.checks),
    }
    if (found := verdict.evidence) is not None:
        clock = found.clock
        rows.append(
            f"    TPM clock {clock.milliseconds / 1000:.0f} s, {clock.resets} resets, "
            f"{clock.restarts} restarts, firmware {found.firmware:#x}"
        )
        shown |= {
            "identifier": found.identifier or None,
            "public_key": found.public_key.hex(),
            "pcrs": found.pcrs,
            "clock": {**clock._asdict(), "firmware": found.firmware},
            "digest": found.digest.hex(),
        }
    text = "\n".join(rows)
    return Result(text=text, machine=text, json=shown)


# --- files


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > _LONGEST_FILE:
        raise ConfigError(f"{path} is too large to be what was asked for")
    return data


def _write(path: Path, data: bytes, *, private: bool = False) -> None:
    """All of it or nothing; a secret is readable by its owner only."""
    import os  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    try:
        fd, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        if not private:
            os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        os.unlink(name)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
