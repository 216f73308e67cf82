"""What a command prints: the result on standard output, everything else on standard error.

A result has up to three forms. On a terminal the text is taken, else the machine form, else JSON;
elsewhere the machine form, else JSON, else the text. `--output json` takes JSON or prints nothing.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from edge.errors import ConfigError

ABSENT: Any = object()


@dataclass
class Result:
    """The forms of one result. JSON may be any value, None too; ABSENT is none of them."""

    text: str | None = None
    machine: str | None = None
    json: Any = ABSENT


@dataclass
class Settings:
    """The global options, wherever on the line they stood."""

    quiet: bool = False
    no_color: bool = False
    no_input: bool = False
    json: bool = False
    compact: bool = False


def settings() -> Settings:
    context = click.get_current_context(silent=True)
    return context.find_root().ensure_object(Settings) if context else Settings()


def chosen(result: Result, *, terminal: bool, wanted: Settings) -> str:
    """The form to print, without white space at its end."""
    as_json = None if result.json is ABSENT else _json(result.json, compact=wanted.compact)
    if wanted.json or wanted.compact:
        return as_json or ""
    order = (
        (result.text, result.machine, as_json)
        if terminal
        else (result.machine, as_json, result.text)
    )
    return next((form for form in order if form is not None), "").rstrip()


def emit(result: Result) -> None:
    terminal = sys.stdout.isatty()
    text = chosen(result, terminal=terminal, wanted=settings())
    if text:
        click.echo(text, nl=terminal, color=terminal and not settings().no_color)


def note(text: str) -> None:
    """Progress, hints and warnings."""
    if not settings().quiet:
        click.echo(text, err=True)


def complain(message: str, hint: str = "", *, settings: Settings) -> None:
    """Why the command failed, on one line, and what to do about it."""
    if settings.quiet:
        return
    colour = sys.stderr.isatty() and not settings.no_color
    click.echo(f"{click.style('error', fg='red')}: {message}", err=True, color=colour)
    if hint:
        click.echo(f"hint: {hint}", err=True, color=colour)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed. Where nobody can answer, only --yes will do."""
    if yes:
        return
    wanted = settings()
    if wanted.quiet or wanted.no_input or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError("nobody is there to confirm this", hint="add --yes")
    click.confirm(question, abort=True, err=True)


def done(text: str) -> str:
    """A line of the terminal form: something was done."""
    return f"  ✔ {text}"


def lines(pairs: dict[str, Any]) -> str:
    """A block of the terminal form: one `label: value` a line, empty values left out."""
    width = max(map(len, pairs), default=0) + 1
    shown = ((label + ":", value) for label, value in pairs.items() if value not in (None, ""))
    return "\n".join(f"    {label:<{width}} {value}" for label, value in shown)


def listing(
    items: list[dict[str, Any]], line: Callable[[dict[str, Any]], str], none: str
) -> Result:
    """The result of a `list`: JSON for programs, a line for each item on a terminal."""
    text = "\n".join(f"  │ {line(item)}" for item in items) or f"    {none}"
    return Result(text=text, json=items)


def _json(value: Any, *, compact: bool) -> str:
    return json.dumps(value, indent=None if compact else 2, sort_keys=True, default=_plain)


def _plain(value: Any) -> str:
    return bytes(value).hex() if isinstance(value, bytes | bytearray | memoryview) else str(value)
