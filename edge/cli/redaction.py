"""Redaction: takes what may be a secret out of texts that leave the machine.

Two ways at once: what is known to be a secret here is taken out wherever it stands, and whatever
looks like one, by its name or by its shape, as well. Identifiers, addresses and times stay. Too much
goes rather than too little.
"""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

GONE = "<removed>"
SHORTEST = 6
"""Characters of a known secret that is looked for everywhere. Of a shorter one, the places where it is
taken out would tell what it is."""
SECRET = (
    r"(?:pin|puk|pass(?:word|wd|phrase)?|secret|ticket|code|credential|(?:token|api)[-_]?key"
    r"|authorization)"
)
WORDS = r"(?:[a-z0-9]{1,32}[-_]){0,4}"
"""What may stand before such a name. Bounded, as all patterns here: a log may hold anything."""
NAMED = re.compile(
    rf"""(?ix)
    (?: (?<![a-z0-9]) | (?<=%3F) | (?<=%26) ) (?<!source=) (?<!source%3D)
    ( {WORDS} {SECRET} (?:[-_]value)? ["']? \s{{0,8}} (?: [:=] | %3D ) \s{{0,8}} )
    ( "(?:[^"\\]|\\.)*" | '[^']*' | (?:bearer|basic)\s+\S+ | [^\s,;&"'}}\]]+ )"""
)
"""`pin-value=1234`, `"ticket": "…"`, `PIN: 1234`, `Authorization: Basic …`."""
SPOKEN = re.compile(rf"(?i)\b({SECRET}\s+(?:is\s+)?)(['\"]?)(?=[^\s'\"]*\d)[^\s'\",;]+\2")
"""`the PIN 1234 was refused`: a word with a digit after such a name."""
USERINFO = re.compile(r"(?i)(\b[a-z][a-z0-9+-]{0,20}://)[^/\s@'\"]{1,2000}@")
"""`http://user:password@host`."""
PEM = re.compile(r"-----BEGIN [^-]+-----.*?(?:-----END [^-]+-----|\Z)", re.S)
FLAG = re.compile(rf"(?i)(--(?:[a-z]+-)*{SECRET}[ =])(?:'[^']*'|\"[^\"]*\"|\S+)")
"""`--pin 1234` on a command line."""
LONG = re.compile(r"(?<![A-Za-z0-9+/_-])(?!I[0-9a-f]{64}(?![A-Za-z0-9+/_-]))[A-Za-z0-9+/_-]{40,}=*")
"""Base64 or hexadecimal of 20 bytes and more: tickets, codes, credentials, keys. Not identifiers."""
PLAIN = re.compile(r"I[0-9a-f]{64}|(?![0-9a-f]{24})[a-z0-9_-]{0,40}|[A-Z]?[a-z_-]{0,23}")
"""A part of a path or route that may stay: an identifier, or something short that is not random."""
STATES = ("ok", "tried", "last-try", "locked", "null", "none", "true", "false")
"""What is said of a PIN, and is none."""
REVEALING = re.compile(rf"(?i)(?:^|[-_]){SECRET}(?:$|[-_])|(?:^|_)(?:key|token)$")
"""Names of variables and keys whose values are never shown."""
HARMLESS = re.compile(r"(?i)source|path|file$|_dir$|home$")


class Redaction:
    """Knows the secrets of one machine."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        forms = {form for secret in known for form in (secret, unquote(secret))}
        found = sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, found))) if found else None

    def text(self, text: str) -> str:
        """The same text without what may be secret."""
        if self._known is not None:
            text = self._known.sub(GONE, text)
        text = PEM.sub(GONE, text)
        text = USERINFO.sub(rf"\1{GONE}@", text)
        text = FLAG.sub(rf"\1{GONE}", text)
        text = NAMED.sub(_unless_source, text)
        text = SPOKEN.sub(rf"\1{GONE}", text)
        return LONG.sub(_unless_path, text)


def _unless_source(found: re.Match[str]) -> str:
    """What says where a PIN is to be found, or how it is, is not the PIN."""
    value = found[2].strip("\"'")
    if value.startswith(("file:", "credential:", GONE)) or value.lower() in STATES:
        return found[0]
    return found[1] + (f'"{GONE}"' if found[2].startswith('"') else GONE)


def _unless_path(found: re.Match[str]) -> str:
    text = found[0]
    whole = "/" in text and all(PLAIN.fullmatch(part) for part in text.split("/"))
    return text if whole or re.fullmatch(r"[a-z]+(?:[-_][a-z]+)+", text) else GONE


def is_secret_name(name: str) -> bool:
    """Whether what is called so is never to be shown."""
    return bool(REVEALING.search(name)) and not HARMLESS.search(name)


def secrets_of(environment: Mapping[str, str], texts: Iterable[str]) -> Iterable[str]:
    """What is known to be secret: of variables by their names, and in URIs and URLs of texts."""
    for name, value in environment.items():
        if is_secret_name(name):
            yield value
        yield from _in_urls(value)
    for text in texts:
        yield from _in_urls(text)


def _in_urls(text: str) -> Iterable[str]:
    for found in re.finditer(r"(?i)pin-value=([^&\s;'\"]+)", text):
        yield found[1]
    for found in re.finditer(r"(?i)://([^/\s@'\":]*):([^/\s@'\"]+)@", text):
        yield found[2]
