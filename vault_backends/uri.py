"""Vault URIs, and reading the secrets they point at.

    software:/var/lib/edge/keys?key-source=file:/etc/edge/keys.key
    software:/var/lib/edge/keys?passphrase-source=credential:edge-passphrase
    software:/var/lib/edge/keys?sealed-by=pkcs11%3Atoken=edge%3Fmodule-path=/usr/lib/…%26pin-source=file:/etc/edge/pin
    pkcs11:token=edge;object=identity?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/edge/pin

A URI holds no secret, so messages may show its parts. `pin-value` is refused for that reason, unless
the caller of parse() allows it, which no command does; its value appears nowhere."""

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote_to_bytes

from vault_backends.owners import check_way
from vault_backends.vault import Locked, Misconfigured

Ask = Callable[[str], str | None]

ASK = "ask"  # the source that is a person
PIN_VALUE = "pin-value"  # the source that is the URI itself
_LONGEST_SECRET = 4096


@dataclass(frozen=True)
class SoftwareUri:
    """Keys in one file. Exactly one of the last three is set."""

    scheme: ClassVar[str] = "software"
    path: Path
    key_source: str | None = None
    passphrase_source: str | None = None
    sealed_by: str | None = None  # the URI of a token


@dataclass(frozen=True)
class Pkcs11Uri:
    """RFC 7512, as much of it as finds one token and its keys. None matches anything. The module is
    named by its path or, where that is empty, by its name."""

    scheme: ClassVar[str] = "pkcs11"
    module_path: str = ""
    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    slot_id: int | None = None
    object: str | None = None
    id: bytes | None = None
    pin_source: str = ASK
    parameters: str | None = None  # for modules that want text at initialisation (NSS)
    module_name: str | None = None
    pin_value: str | None = field(default=None, repr=False)


def unparse(uri: Pkcs11Uri) -> str:
    """The text that parse() takes, percent-encoded so that '…' quotes it for a shell. Without a
    pin-value."""
    given = {
        "token": uri.token, "serial": uri.serial, "manufacturer": uri.manufacturer,
        "model": uri.model, "slot-id": uri.slot_id, "object": uri.object, "id": uri.id,
    }  # fmt: skip
    asked = {
        "module-path": uri.module_path,
        "module-name": uri.module_name,
        "pin-source": None if uri.pin_source in (ASK, PIN_VALUE) else uri.pin_source,
        "x-parameters": uri.parameters,
    }
    return f"pkcs11:{_joined(given, ';')}?{_joined(asked, '&')}"


def _joined(pairs: Mapping[str, str | int | bytes | None], separator: str) -> str:
    def coded(value: str | int | bytes) -> str:
        if isinstance(value, bytes):
            return "".join(f"%{byte:02x}" for byte in value)
        return quote(str(value), safe="/:@-._~")

    return separator.join(
        f"{name}={coded(value)}" for name, value in pairs.items() if value not in (None, "", b"")
    )


def parse(uri: str, *, allow_pin_value: bool = False) -> SoftwareUri | Pkcs11Uri:
    """What `uri` names. A PIN in it is refused unless `allow_pin_value`: a URI is stored, listed and
    logged. Misconfigured says what is wrong with it."""
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in _PARSERS:
        raise Misconfigured(
            f"vault URI: unknown scheme {scheme[:40]!r}" if colon else "vault URI: no scheme",
            hint="use software:/path or pkcs11:token=LABEL?module-path=/path",
        )
    path, _, query = rest.partition("?")
    return _PARSERS[scheme](path, query, allow_pin_value)


def _software(path: str, query: str, allow_pin_value: bool) -> SoftwareUri:
    values = _pairs(query, "&", {"key-source", "passphrase-source", "sealed-by"}, "query")
    place = _text("path", path)
    if not place.startswith("/"):
        raise Misconfigured(f"vault URI: the path must be absolute, not {place!r}")
    if len(values) > 1:
        raise Misconfigured("vault URI: give key-source, passphrase-source or sealed-by, not both")
    if "sealed-by" in values:
        return SoftwareUri(Path(place), sealed_by=_sealed_by(values["sealed-by"]))
    sources = {name: _source(name, value) for name, value in values.items()}
    if not sources:
        sources = {"key-source": f"file:{place}.key"}
    return SoftwareUri(Path(place), sources.get("key-source"), sources.get("passphrase-source"))


def _sealed_by(value: str) -> str:
    uri = _text("sealed-by", value)
    if not isinstance(parse(uri), Pkcs11Uri):
        raise Misconfigured("vault URI: sealed-by is the URI of a token, percent-encoded")
    return uri


_PATH_ATTRIBUTES = {
    "token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type",
}  # fmt: skip
_QUERY_ATTRIBUTES = {"module-path", "module-name", "pin-source", "x-parameters"}


def _pkcs11(path: str, query: str, allow_pin_value: bool) -> Pkcs11Uri:
    # An attribute that is not understood must match nothing (RFC 7512): a typing error never
    # widens.
    given = _pairs(path, ";", _PATH_ATTRIBUTES, "path")
    pin_value = any(part.partition("=")[0] == PIN_VALUE for part in query.split("&"))
    if pin_value and not allow_pin_value:
        raise Misconfigured(
            "vault URI: pin-value is refused, a URI is no place for a PIN",
            hint="put the PIN in a file with mode 0600 and give pin-source=file:/path",
        )
    asked = _pairs(query, "&", _QUERY_ATTRIBUTES | ({PIN_VALUE} if pin_value else set()), "query")
    if pin_value and "pin-source" in asked:
        raise Misconfigured("vault URI: give pin-source or pin-value, not both")
    if given.get("type", "private") not in ("private", "public"):
        raise Misconfigured(f"vault URI: type={given['type']} is no key pair")
    if ("module-path" in asked) is ("module-name" in asked):
        given_both = "module-path" in asked
        raise Misconfigured(
            "vault URI: give module-path or module-name, not both"
            if given_both
            else "vault URI: module-path is missing",
            hint="add ?module-path=/path/of/the/pkcs11/library.so, or module-name=softhsm2",
        )

    def text(name: str, pairs: Mapping[str, str] = given) -> str | None:
        return _text(name, pairs[name]) if name in pairs else None

    source = _source("pin-source", asked["pin-source"]) if "pin-source" in asked else ASK
    return Pkcs11Uri(
        module_path=text("module-path", asked) or "",
        token=text("token"),
        serial=text("serial"),
        manufacturer=text("manufacturer"),
        model=text("model"),
        slot_id=_number("slot-id", given["slot-id"]) if "slot-id" in given else None,
        object=text("object"),
        id=_bytes("id", given["id"]) if "id" in given else None,
        pin_source=PIN_VALUE if pin_value else source,
        parameters=text("x-parameters", asked),
        module_name=_module_name(asked["module-name"]) if "module-name" in asked else None,
        pin_value=text(PIN_VALUE, asked),
    )


def _module_name(value: str) -> str:
    name = _text("module-name", value)
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise Misconfigured(
            "vault URI: module-name is a name such as softhsm2, not a path",
            hint="give a path as module-path=",
        )
    return name


_PARSERS: dict[str, Callable[[str, str, bool], SoftwareUri | Pkcs11Uri]] = {
    "software": _software,
    "pkcs11": _pkcs11,
}


def _pairs(text: str, separator: str, known: set[str], where: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name not in known:
            # What is no name may be the rest of a PIN with an & in it.
            shown = repr(name[:40]) if re.fullmatch(r"[a-z][a-z-]*", name) else "(not shown)"
            raise Misconfigured(
                f"vault URI: unknown {where} attribute {shown}",
                hint="known: " + ", ".join(sorted(known)),
            )
        if not equals or not value:
            raise Misconfigured(f"vault URI: {name} has no value")
        if name in pairs:
            raise Misconfigured(f"vault URI: {name} is given twice")
        pairs[name] = value
    return pairs


def _bytes(name: str, value: str) -> bytes:
    if re.search(r"%(?![0-9A-Fa-f]{2})", value) or not value.isascii() or " " in value:
        raise Misconfigured(f"vault URI: {name} is not percent-encoded correctly")
    return unquote_to_bytes(value)


def _text(name: str, value: str) -> str:
    try:
        text = _bytes(name, value).decode()
    except UnicodeDecodeError:
        raise Misconfigured(f"vault URI: {name} is not UTF-8") from None
    # Tokens pad with NUL or space, and tools put that padding into the URIs they print.
    text = text.rstrip("\0 ")
    if "\0" in text:
        raise Misconfigured(f"vault URI: {name} holds a NUL")
    return text


def _number(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,20}", value):
        raise Misconfigured(f"vault URI: {name} is not a number")
    return int(value)


def _source(name: str, value: str) -> str:
    return check_source(f"vault URI: {name}", _text(name, value), ask=name != "key-source")


def check_source(name: str, source: str, *, ask: bool = True) -> str:
    """Where a secret is to come from: `file:/absolute/path`, `credential:NAME` or `ask`."""
    kind, _, rest = source.partition(":")
    if kind == "file" and (place := _file_path(rest)).startswith("/"):
        return f"file:{place}"
    if kind == "credential" and re.fullmatch(r"[\w@-][\w.@-]*", rest):
        return source
    if source == ASK and ask:
        return source
    # The value may be a secret put in the wrong place: it is not shown.
    raise Misconfigured(f"{name} must be file:/absolute/path, credential:NAME or ask")


def _file_path(rest: str) -> str:
    return rest.removeprefix("//") if rest.startswith("///") else rest


def secret_path(source: str) -> Path:
    """The file behind `file:/path` or `credential:NAME`."""
    kind, _, rest = source.partition(":")
    if kind == "file":
        return Path(rest)
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise Locked(
            f"{source}: systemd gave no credentials ($CREDENTIALS_DIRECTORY is not set)",
            hint=f"add LoadCredentialEncrypted={rest} to the unit",
        )
    return Path(folder) / rest


def read_secret(source: str) -> str:
    """The text in the file behind `source`, without one newline at its end. Only root and we may
    have chosen that file: of another secret of ours each try would cost the token a PIN."""
    path = secret_path(source)
    try:
        if source.startswith("file:"):
            check_way(path, frozenset((0, os.geteuid())))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Locked(f"{source}: cannot read {path}: {error.strerror}") from None
    try:
        _check_owner(os.fstat(fd), path, credential=source.startswith("credential:"))
        data = os.read(fd, _LONGEST_SECRET + 1)
    finally:
        os.close(fd)
    return _secret_text(data, source)


def _secret_text(data: bytes, source: str) -> str:
    data = data.removesuffix(b"\n")
    if not data or len(data) > _LONGEST_SECRET:
        raise Locked(f"{source}: the secret must have 1 to {_LONGEST_SECRET} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:  # its text would show the bytes
        raise Locked(f"{source}: the secret is not UTF-8 text") from None


def _check_owner(found: os.stat_result, path: Path, *, credential: bool = False) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Misconfigured(f"{path} is not a file")
    if found.st_uid not in (0, os.geteuid()):
        raise Misconfigured(
            f"{path} belongs to user {found.st_uid}",
            hint=f"chown it to root or to user {os.geteuid()}",
        )
    # systemd opens a credential to the service with an ACL, whose mask shows as group-readable.
    if found.st_mode & (0o037 if credential else 0o077):
        raise Misconfigured(
            f"{path} can be read by others (mode {stat.S_IMODE(found.st_mode):04o})",
            hint=f"chmod 600 {path}",
        )


def check_private(path: Path) -> os.stat_result:
    """Refuse a file that others can read or could have written."""
    found = os.stat(path)
    _check_owner(found, path)
    return found


def obtain(source: str, ask: Ask | None, prompt: str) -> str:
    """The secret behind `source`, or what the person answers."""
    if source != ASK:
        return read_secret(source)
    answer = ask(prompt) if ask is not None else None
    if not answer:
        raise Locked(
            f"{prompt} is needed", hint="name a file in the vault URI, or answer when asked"
        )
    return answer
