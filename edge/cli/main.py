"""`ockam-edge`: the group of all commands, the global options, and the only place that catches errors.

A noun's module is imported when the noun is used: help and quick commands stay quick.
"""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from edge import __version__
from edge.cli.output import Result, Settings, complain, emit
from edge.errors import EdgeError

FAILED = 70
MISUSED = 64

# noun -> where its group is, and its line in the help
NOUNS = {
    "status": ("edge.cli.status:status", "What runs here, how it is, and what to do about it"),
    "identity": ("edge.cli.identity:identity", "Who this machine is: keys and their histories"),
    "vault": ("edge.cli.vault:vault", "Where private keys live: a file, or a token"),
    "hsm": ("edge.cli.hsm:hsm", "Tokens, and the keys in them"),
    "node": ("edge.cli.node:node", "The process that everything runs in"),
    "tcp-listener": (
        "edge.cli.listener:tcp_listener",
        "Addresses where a node accepts TCP connections",
    ),
    "tcp-connection": ("edge.cli.listener:tcp_connection", "TCP connections that a node made"),
    "secure-channel": ("edge.cli.channel:secure_channel", "Encrypted channels to other nodes"),
    "secure-channel-listener": (
        "edge.cli.channel:secure_channel_listener",
        "Addresses where a node accepts secure channels",
    ),
    "tcp-outlet": ("edge.cli.outlet:tcp_outlet", "Where a tunnel ends: connects to a service"),
    "tcp-inlet": ("edge.cli.inlet:tcp_inlet", "Where a tunnel begins: listens for clients"),
    "relay": ("edge.cli.relay:relay", "Be reachable at another node, without a port of one's own"),
    "project": ("edge.cli.project:project", "A fleet: its tickets, its members' enrollment"),
    "project-member": ("edge.cli.member:project_member", "Members of a project, for enrollers"),
    "authority": ("edge.cli.authority:authority", "Who vouches for the members of a fleet"),
    "credential": ("edge.cli.credential:credential", "What an identity says of another one"),
    "policy": ("edge.cli.policy:policy", "Who may use what on a node"),
    "message": ("edge.cli.message:message", "Send one message and print the answer"),
    "worker": ("edge.cli.service:worker", "Addresses inside a node"),
    "service": ("edge.cli.service:service", "Services that a node offers"),
    "diag": ("edge.cli.diag:diag", "One file without secrets for whoever is to help"),
    "systemd": ("edge.cli.units:systemd", "The service of the system that a node runs in"),
}


def _set(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """An option given on the group and again on a command counts wherever it was given."""
    settings = context.find_root().ensure_object(Settings)
    if parameter.name == "output":
        settings.json = value == "json" if value else settings.json
    elif value:
        setattr(settings, str(parameter.name), True)


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"ockam-edge {__version__}")
        context.exit()


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """Accepted by every command; the help of the whole program lists them once."""

    def flag(*names: str, text: str) -> click.Option:
        return click.Option(
            names, is_flag=True, expose_value=False, hidden=hidden, callback=_set, help=text
        )

    return [
        flag("-q", "--quiet", text="Only the result and errors; ask nothing."),
        flag("--no-color", text="No colours."),
        flag("--no-input", text="Never ask."),
        click.Option(
            ["--output"],
            type=click.Choice(["plain", "json"]),
            expose_value=False,
            hidden=hidden,
            callback=_set,
            help="The form of the result.",
        ),
        flag("--compact-output", "compact", text="JSON on one line."),
        click.Option(
            ["-V", "--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            hidden=hidden,
            callback=_version,
            help="The version.",
        ),
    ]


class Command(click.Command):
    """A command that prints the Result it returns, and takes the global options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options(hidden=True)

    def invoke(self, ctx: click.Context) -> None:
        result = super().invoke(ctx)
        if isinstance(result, Result):
            emit(result)


class Noun(click.Group):
    """The commands of one noun."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options(hidden=True)


class Program(click.Group):
    """All nouns. The help names them without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NOUNS:
            return None
        module, _, attribute = NOUNS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Names the nearest noun, as click does for commands that it knows without importing them."""
        wanted = args[0]
        if wanted not in NOUNS and not wanted.startswith("-"):
            near = get_close_matches(wanted, NOUNS, n=1)
            ctx.fail(
                f"No such command {wanted!r}." + (f" Did you mean {near[0]!r}?" if near else "")
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in NOUNS.items()])


def _from_environment(settings: Settings) -> None:
    for variable, attribute in (
        ("QUIET", "quiet"), ("NO_COLOR", "no_color"), ("NO_INPUT", "no_input"),
    ):  # fmt: skip
        value = os.environ.get(variable, "false")
        if value not in ("true", "false", ""):
            raise click.UsageError(f"{variable} must be true or false, not {value!r}")
        if value == "true":
            setattr(settings, attribute, True)


@click.group(
    cls=Program,
    params=global_options(hidden=False),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.pass_context
def program(context: click.Context) -> None:
    """Ockam tunnels for small devices, with the identity key in hardware."""
    _from_environment(context.ensure_object(Settings))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    settings = Settings()
    try:
        status = program.main(
            arguments, prog_name="ockam-edge", standalone_mode=False, obj=settings
        )
    except click.UsageError as error:
        error.show()
        return MISUSED
    except click.Abort:
        complain("stopped: nothing more was done", settings=settings)
        return FAILED
    except Exception as error:
        return _failed(error, settings)
    return status if isinstance(status, int) else 0


def _failed(error: Exception, settings: Settings) -> int:
    from vault_backends.vault import VaultError  # noqa: PLC0415  (only a failure needs it)

    if isinstance(error, EdgeError | VaultError):
        complain(str(error), error.hint, settings=settings)
        return int(error.exit_code)
    if isinstance(error, BrokenPipeError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (the interpreter flushes it when it ends)
        return FAILED
    import traceback  # noqa: PLC0415

    traceback.print_exception(error)
    complain(f"this is a bug: {type(error).__name__}: {error}", settings=settings)
    return FAILED


def main() -> None:
    sys.exit(run())
