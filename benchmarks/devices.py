"""Simulated devices: each with an identity and a ticket of its own, over a channel of its own.

A process of the load test (fleet.py). Tells on its output `ready` when the identities are made, waits
for a line, lets all its devices enroll, so many at once, and writes what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from typing import Any

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge.authority.client import AlreadyMember, Client
from edge.channel.handshake import Presentation
from edge.channel.noise import public_key
from edge.channel.trust import Trust, only
from edge.errors import EdgeError, NetworkError
from edge.identity.history import KEY_LIFETIME, Identifier, create
from edge.identity.keys import KeyKind, PublicKey
from edge.identity.known import Known
from edge.identity.purpose import attest_channel_key
from edge.routing.connection import Connection, Connector
from edge.routing.reach import Wiring
from edge.routing.router import Router
from edge.wire.multiaddr import Multiaddr

TIMEOUT = 60.0
"""Seconds for a connection of one device."""
ANSWER, TRIES = 5.0, 5
"""Seconds until a device begins anew, and how often it tries: a burst of handshakes leaves some
channels of a stock authority silent."""


def presentation(seed: bytes) -> Presentation:
    """A fresh identity with a key from 32 bytes, and what it presents."""
    key, now = Ed25519PrivateKey.from_private_bytes(seed), int(time.time())
    public = PublicKey(KeyKind.ED25519, key.public_key().public_bytes_raw())
    history = create(public, key.sign, valid_from=now - 60, valid_until=now + KEY_LIFETIME)
    secret = seed[::-1]
    attestation = attest_channel_key(
        history, public_key(secret), key.sign, now=now, lifetime=24 * 3600
    )
    return Presentation(history, attestation, secret, None)


async def connected(
    shown: Presentation, port: int, authority: Identifier
) -> tuple[Client, Connection]:
    """A client of the authority, as one device has it: a router of its own."""
    router = Router()
    connector = Connector(
        router,
        Wiring(),
        present=lambda: shown,
        known=Known(),
        learned=lambda history, credentials: None,
        now=lambda: int(time.time()),
    )
    trust: Trust = only(authority)
    connection = await connector.connect(
        Multiaddr.parse(f"/ip4/127.0.0.1/tcp/{port}/secure/api"),
        trust_for=lambda position, count: trust,
        timeout=TIMEOUT,
    )
    return Client(router, connection.channels[-1], timeout=ANSWER), connection


async def enroll(shown: Presentation, code: bytes, port: int, authority: Identifier) -> int:
    """What a device does on its first boot, over a new channel where one stays silent; how often."""
    for again in range(TRIES):
        try:
            await enroll_once(shown, code, port, authority)
        except NetworkError:
            continue
        return again
    raise NetworkError(f"no answer in {TRIES} times {ANSWER:g} s")


async def enroll_once(shown: Presentation, code: bytes, port: int, authority: Identifier) -> None:
    client, connection = await connected(shown, port, authority)
    try:
        with contextlib.suppress(AlreadyMember):  # an answer was lost
            await client.redeem(code)
        credential = await client.credential()
        if credential.subject != shown.history.identifier:
            raise EdgeError(f"a credential of {credential.subject}")
    finally:
        connection.close()


async def crowd(given: dict[str, Any], all_: list[Presentation]) -> dict[str, Any]:
    authority, codes = Identifier.parse(given["authority"]), map(bytes.fromhex, given["codes"])
    waiting, took, failures = list(zip(all_, codes, strict=True))[::-1], list[float](), list[str]()
    start, asked_again = time.monotonic(), 0

    async def one_after_another() -> None:
        nonlocal asked_again
        while waiting:
            shown, code = waiting.pop()
            began = time.monotonic()
            try:
                asked_again += await enroll(shown, code, given["port"], authority)
                took.append(time.monotonic() - began)
            except EdgeError as error:
                failures.append(f"{type(error).__name__}: {error}")

    await asyncio.gather(*(one_after_another() for _ in range(given["at_once"])))
    return {
        "began": start,
        "ended": time.monotonic(),
        "took": took,
        "asked_again": asked_again,
        "failures": failures,
    }


def main() -> None:
    given = json.loads(sys.stdin.readline())
    all_ = [presentation(bytes.fromhex(seed)) for seed in given["seeds"]]
    print("ready", flush=True)
    sys.stdin.readline()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(crowd(given, all_))), flush=True)


if __name__ == "__main__":
    main()
