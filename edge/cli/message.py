"""`message`: send one message and print the answer."""

import click

from edge.cli import client, local
from edge.cli.arguments import NODE, Duration, Identifier, Name, Route
from edge.cli.main import Noun
from edge.cli.output import Result
from edge.errors import DecodeError
from edge.wire import bare


@click.group("message", cls=Noun)
def message() -> None:
    """Messages: the quickest check that a route works."""


@message.command()
@click.argument("text")
@click.option(
    "-t", "--to", type=Route(), required=True, help="The route, such as /node/n1/service/echo."
)
@click.option(
    "-f", "--from", "node", type=NODE, help="The node that sends; without it, a temporary one."
)
@click.option("--identity", type=Name("identity"), help="The identity of the temporary node.")
@click.option("--authorized", type=Identifier(), help="The only identity accepted at the far end.")
@click.option("--hex", "as_hex", is_flag=True, help="TEXT and the answer are hexadecimal bytes.")
@click.option("--timeout", type=Duration(), default="10s", help="How long to wait for the answer.")
def send(
    text: str,
    to: str,
    node: str | None,
    identity: str | None,
    authorized: str | None,
    as_hex: bool,
    timeout: int,
) -> Result:
    """Send TEXT and print the answer."""
    payload = _bytes(text) if as_hex else bare.encode_string(text)
    if node is not None:
        name = client.node_name(node)
        body = {
            "to": client.resolved(to), "payload": payload, "timeout": timeout, "authorized": authorized,
        }  # fmt: skip
        peer = client.connect(name, timeout=client.TIMEOUT + timeout / 1000)
        answer = bytes(peer.post("/message", body)["payload"])
    else:
        answer = _from_here(client.resolved(to), payload, identity, authorized, timeout / 1000)
    return Result(text=answer.hex() if as_hex else _text(answer))


def _from_here(
    to: str, payload: bytes, identity: str | None, authorized: str | None, timeout: float
) -> bytes:
    from edge.cli.temporary import send_once  # noqa: PLC0415  (asyncio, cryptography)
    from edge.node.identities import load  # noqa: PLC0415

    with local.store() as store:
        ours = load(store, identity) if "/secure/" in to or identity else None
        return send_once(
            to,
            payload,
            ours,
            home=local.home(),
            authorized=authorized,
            timeout=timeout,
            floor=store.time_floor(),
            ask=local.ask,
        )


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise click.UsageError(f"{text[:80]!r} is not hexadecimal") from None


def _text(answer: bytes) -> str:
    """A BARE string; what is none is shown as hexadecimal digits."""
    try:
        return bare.decode_string(answer)
    except DecodeError:
        return answer.hex()
