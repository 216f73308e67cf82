"""`hsm`: tokens, and the keys in them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.cli import local
from edge.cli.main import Noun
from edge.cli.output import Result, confirm, done, lines, note
from edge.cli.resource import yes_option
from edge.errors import ConfigError

if TYPE_CHECKING:
    from vault_backends.pkcs11.admin import KeyRecord
    from vault_backends.pkcs11.change import NewPin
    from vault_backends.pkcs11.initialise import Initialised, Sources
    from vault_backends.pkcs11.survey import Found, Slot
    from vault_backends.uri import Pkcs11Uri

# name of a command -> where it is, for those with a file of their own
ELSEWHERE = {
    "test": "edge.cli.hsmreport:test",
    "probe": "edge.cli.hsmreport:probe",
    "attest": "edge.cli.attest:attest",
    "verify-attestation": "edge.cli.attest:verify_attestation",
    "challenge": "edge.cli.attest:challenge",
}


class Hsm(Noun):
    """The commands here, and those that are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *ELSEWHERE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        from importlib import import_module  # noqa: PLC0415

        module, _, attribute = ELSEWHERE[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group("hsm", cls=Hsm)
def hsm() -> None:
    """Tokens: TPMs, HSMs and smart cards, through their PKCS#11 modules.

    A TOKEN is a PKCS#11 URI or the name of a vault. Without it: the vault of the default identity, or
    the only token there is. PINs are asked for, or read where --pin-source or the URI says; never
    typed on the command line. Every command may be repeated."""


token_argument = click.argument("token", metavar="[TOKEN]", required=False)
module_option = click.option("--module", metavar="PATH", help="A PKCS#11 library to look into.")
pin_option = click.option(
    "--pin-source", metavar="SOURCE", help="file:/path, credential:NAME or ask; else as in the URI."
)


@hsm.command("list")
@module_option
def list_(module: str | None) -> Result:
    """Modules, their tokens, what each can do, and the URI to type."""
    from vault_backends.pkcs11.survey import survey  # noqa: PLC0415

    found = survey(None if module is None else [(module, None)])
    text = "\n".join(_module_text(one) for one in found) or "    there is no PKCS#11 module"
    return Result(text=text, json=[_module_json(one) for one in found])


def _module_text(found: "Found") -> str:
    if found.error:
        return f"  ✘ {found.path}\n      does not load: {found.error}"
    head = f"  │ {found.path}  ({found.maker} {found.version}, {found.profile})"
    slots = [_slot_text(found, slot) for slot in found.slots]
    return "\n".join([head, *(slots or ["      no token"])])


def _slot_text(found: "Found", slot: "Slot") -> str:
    from edge.cli.token import shown  # noqa: PLC0415

    name = f"token {slot.label!r}" if slot.initialised else "a token that is not initialised"
    pairs = {
        "serial": slot.serial,
        "model": slot.model,
        "PIN": ", ".join(slot.pin),
        "claims": ", ".join(slot.claims),
        "uri": shown(found.uri(slot)),
    }
    return f"      {name}\n" + "\n".join(f"      {line}" for line in lines(pairs).splitlines())


def _module_json(found: "Found") -> dict[str, Any]:
    return {
        "module": found.path,
        "profile": found.profile,
        "maker": found.maker,
        "version": found.version,
        "error": found.error or None,
        "tokens": [_slot_json(found, slot) for slot in found.slots],
    }


def _slot_json(found: "Found", slot: "Slot") -> dict[str, Any]:
    from dataclasses import asdict  # noqa: PLC0415

    from vault_backends.uri import unparse  # noqa: PLC0415

    return asdict(slot) | {"uri": unparse(found.uri(slot))}


@hsm.command()
@token_argument
@module_option
@click.option("--label", required=True, help="What the token is to be called.")
@pin_option
@click.option("--so-pin-source", metavar="SOURCE", help="Of the SO PIN, which resets the other.")
@click.option(
    "--generate-pin",
    metavar="FILE",
    type=click.Path(),
    help="Keep a random PIN in FILE, and a random SO PIN in FILE.so unless it has a source.",
)
def init(
    token: str | None,
    module: str | None,
    label: str,
    pin_source: str | None,
    so_pin_source: str | None,
    generate_pin: str | None,
) -> Result:
    """Initialise a token that is not initialised; never one that is.

    With the label of a token that opens with its PIN, nothing is done and all is well. After a power
    cut the same command goes on."""
    from vault_backends.pkcs11.initialise import initialise  # noqa: PLC0415

    if generate_pin and pin_source:
        raise click.UsageError("--generate-pin and --pin-source exclude each other")
    sources = _sources(pin_source, so_pin_source, generate_pin)
    made = initialise(_blank(token, module, label), label, sources, local.ask, local.home().root)
    return _initialised(made)


def _sources(pin: str | None, so_pin: str | None, generate: str | None) -> "Sources":
    from edge.cli.token import ask_new  # noqa: PLC0415
    from vault_backends.pkcs11.initialise import Sources  # noqa: PLC0415
    from vault_backends.uri import ASK, check_source  # noqa: PLC0415

    if generate:
        pin = f"file:{Path(generate).absolute()}"
        so_pin = so_pin or f"{pin}.so"
    return Sources(
        so_pin=check_source("--so-pin-source", so_pin or ASK),
        pin=check_source("--pin-source", pin or ASK),
        generate=generate is not None,
        ask_new=ask_new(),
    )


def _blank(token: str | None, module: str | None, label: str) -> "Pkcs11Uri":
    """Where to look for a token to initialise: what was typed, or the only module that has one, or
    that has a token of this label."""
    from edge.cli.token import by_path  # noqa: PLC0415
    from vault_backends.pkcs11.survey import survey  # noqa: PLC0415
    from vault_backends.uri import Pkcs11Uri, parse  # noqa: PLC0415

    if token and module:
        raise click.UsageError("TOKEN and --module exclude each other")
    if module:
        return Pkcs11Uri(module)
    if token:
        uri = parse(token) if ":" in token else None
        if not isinstance(uri, Pkcs11Uri):
            raise ConfigError(f"{token} is no PKCS#11 URI", hint="ockam-edge hsm list shows them")
        return by_path(uri)
    found = survey()
    ours = [(one, slot) for one in found for slot in one.slots if slot.label == label]
    free = [(one, slot) for one in found for slot in one.slots if not slot.initialised]
    return _the_one(ours or free, label)


def _the_one(places: "list[tuple[Found, Slot]]", label: str) -> "Pkcs11Uri":
    from vault_backends.pkcs11.survey import listed  # noqa: PLC0415
    from vault_backends.uri import Pkcs11Uri  # noqa: PLC0415

    if len(places) == 1:
        return Pkcs11Uri(places[0][0].path)
    if places:
        raise ConfigError(
            f"several tokens could become {label!r}:{listed(places)}", hint="name one of them"
        )
    raise ConfigError(
        f"there is no token to be given the label {label!r}, and none that has it",
        hint="ockam-edge hsm list shows the tokens; one that is initialised is never done again",
    )


def _initialised(made: "Initialised") -> Result:
    from edge.cli.token import shown  # noqa: PLC0415
    from vault_backends.uri import unparse  # noqa: PLC0415

    for text in made.notes if made.fresh else ():
        note(f"note: {text}")
    what = "is initialised" if made.fresh else "was there already, and opens with its PIN"
    block = {"label": made.uri.token, "serial": made.state.serial, "uri": unparse(made.uri)}
    return Result(
        text=done(f"token {made.uri.token!r} {what}\n    {shown(made.uri)}"),
        machine=unparse(made.uri),
        json=block | {"created": made.fresh, "notes": list(made.notes)},
    )


@hsm.command("create-key")
@token_argument
@click.option("--label", help="Of the key; else object= of the URI.")
@click.option("--kind", type=click.Choice(["ed25519", "p256"]), help="Else what the token can do.")
@pin_option
def create_key(
    token: str | None, label: str | None, kind: str | None, pin_source: str | None
) -> Result:
    """Make a key inside the token; one that is there already is shown."""
    from edge.cli.token import wanted  # noqa: PLC0415
    from vault_backends.pkcs11.admin import create_key as create  # noqa: PLC0415
    from vault_backends.pkcs11.vault import Pkcs11Vault  # noqa: PLC0415
    from vault_backends.vault import Kind  # noqa: PLC0415

    uri = wanted(token, pin_source)
    named = _label(uri, label)
    vault = Pkcs11Vault(uri, local.ask, local.home().root)
    try:
        made = create(vault, named, Kind(kind) if kind else None)
    finally:
        vault.close()
    what = "is made" if made.fresh else "was there already"
    text = done(f"{made.record.kind} key {made.record.label!r} {what}\n") + _key_text(made.record)
    return Result(
        text=text, machine=made.record.uri, json=_key_json(made.record) | {"created": made.fresh}
    )


def _label(uri: "Pkcs11Uri", label: str | None) -> str:
    found = label or uri.object
    if not found:
        raise click.UsageError("which key? Give --label, or object= in the URI")
    return found


@hsm.command()
@token_argument
@pin_option
def keys(token: str | None, pin_source: str | None) -> Result:
    """The keys in a token, with their URIs."""
    from edge.cli.token import wanted  # noqa: PLC0415
    from vault_backends.pkcs11.admin import keys as found  # noqa: PLC0415
    from vault_backends.pkcs11.token import TokenLogin  # noqa: PLC0415

    login = TokenLogin(wanted(token, pin_source), local.ask, local.home().root)
    try:
        records = found(login)
    finally:
        login.close()
    text = "\n".join(f"  │ {one.kind} {one.label!r}\n{_key_text(one)}" for one in records)
    return Result(
        text=text or f"    there is no key in {login.name}",
        json=[_key_json(one) for one in records],
    )


def _key_text(record: "KeyRecord") -> str:
    words = {True: "yes", False: "no", None: "not said"}
    said = ", ".join(f"{name}: {words[value]}" for name, value in record.attributes.items())
    public = record.public and f"{record.public[:64]}{'…' if len(record.public) > 64 else ''}"
    return lines({"id": record.id, "attributes": said, "public": public, "uri": f"'{record.uri}'"})


def _key_json(record: "KeyRecord") -> dict[str, Any]:
    from dataclasses import asdict  # noqa: PLC0415

    return asdict(record)


@hsm.command("delete-key")
@token_argument
@click.option("--label", help="Of the key; else object= of the URI.")
@pin_option
@click.option("--force", is_flag=True, help="Even where an identity of this machine needs the key.")
@yes_option
def delete_key(
    token: str | None, label: str | None, pin_source: str | None, force: bool, yes: bool
) -> Result:
    """Destroy a key; one that is not there is no error."""
    from edge.cli.token import users, wanted  # noqa: PLC0415
    from vault_backends.pkcs11 import admin  # noqa: PLC0415
    from vault_backends.pkcs11.token import TokenLogin  # noqa: PLC0415

    uri = wanted(token, pin_source)
    named = _label(uri, label)
    login = TokenLogin(uri, local.ask, local.home().root)
    try:
        with login.token(), local.store() as store:
            used = users(store, uri, login.state, named)
        if used and not force:
            raise ConfigError(
                f"the key {named!r} belongs to {', '.join(used)}",
                hint="delete that first, or give --force and lose it for good",
            )
        confirm(f"Destroy the key {named!r} in {login.name}?", yes=yes)
        gone = admin.delete_key(login, named)
    finally:
        login.close()
    text = f"key {named!r} is destroyed" if gone else f"there was no key {named!r}"
    return Result(text=done(text), machine=named, json={"label": named, "deleted": bool(gone)})


@hsm.command("change-pin")
@token_argument
@pin_option
@click.option("--new-pin-source", metavar="SOURCE", help="Of the new PIN; else it is asked for.")
@click.option("--generate", is_flag=True, help="A random PIN, for the PIN file of the URI.")
def change_pin(
    token: str | None, pin_source: str | None, new_pin_source: str | None, generate: bool
) -> Result:
    """Change the user PIN, and the PIN file with it; or finish what a power cut broke off."""
    from edge.cli.token import wanted  # noqa: PLC0415
    from vault_backends.pkcs11.change import Outcome  # noqa: PLC0415
    from vault_backends.pkcs11.change import change_pin as change  # noqa: PLC0415

    if generate and new_pin_source:
        raise click.UsageError("--generate and --new-pin-source exclude each other")
    uri = wanted(token, pin_source)
    outcome = change(uri, _new_pin(new_pin_source, generate), local.ask, local.home().root)
    if uri.pin_source.startswith("credential:") and outcome is Outcome.CHANGED:
        note(f"note: put the new PIN into the credential {uri.pin_source.partition(':')[2]} now")
    texts = {Outcome.CHANGED: "the PIN is changed"}
    return Result(
        text=done(texts.get(outcome, outcome.value)),
        machine=outcome.name.lower(),
        json={"outcome": outcome.name.lower(), "pin_source": uri.pin_source},
    )


def _new_pin(source: str | None, generate: bool) -> "NewPin":
    from edge.cli.token import ask_new  # noqa: PLC0415
    from vault_backends.pkcs11.change import NewPin  # noqa: PLC0415
    from vault_backends.uri import ASK, check_source  # noqa: PLC0415

    ask: Callable[[str], str | None] = ask_new()
    given = None if generate else check_source("--new-pin-source", source or ASK)
    return NewPin(given, ask)
