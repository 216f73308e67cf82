"""The process of the vault: opens it, answers one call at a time, and leaves the device in order.

It ends when the node does, by the end of the conversation, and by a watchdog in C when a call hangs
although nobody is left to end it. A module that is not finalised leaves its objects in the TPM, so
SIGTERM means: finish the call, finalise, end.
"""

import faulthandler
import os
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from vault_backends.apart.complaints import Complaints
from vault_backends.apart.messages import Broken, Conversation, Ended
from vault_backends.nocore import keep_no_core
from vault_backends.pkcs11.vault import Pkcs11Vault
from vault_backends.uri import ASK, Pkcs11Uri, parse
from vault_backends.vault import Key, Kind, TokenState, VaultError

PATIENCE = 10.0
"""Seconds that the watchdog grants beyond what the other process waits."""


def main(arguments: list[str]) -> None:
    """Two descriptors: the conversation, and the end of the pipe where our own stderr comes out."""
    conversation = Conversation(socket.socket(fileno=int(arguments[0])))
    keep_no_core()
    _on_signals(conversation.sock)
    service = _Service(conversation, Complaints(int(arguments[1])))
    try:
        service.run()
    except Ended:
        pass
    finally:
        service.close()


def _on_signals(sock: socket.socket) -> None:
    """What a terminal sends to its group is the node's business. SIGTERM ends the conversation after
    the call that is running."""

    def stop(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RD)

    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)


class _Service:
    def __init__(self, conversation: Conversation, complaints: Complaints) -> None:
        self._conversation = conversation
        self._complaints = complaints
        self._vault: Pkcs11Vault | None = None
        self._limit = 0.0

    def run(self) -> None:
        while True:
            request = self._conversation.receive()
            self._limit = request["ms"] / 1000
            with _Watchdog(self._limit):
                answer = self._answer(request["call"], request["with"])
            answer["said"] = self._complaints.take()
            answer |= self._counted()
            self._conversation.send(answer)

    def close(self) -> None:
        with _Watchdog(PATIENCE):
            if self._vault is not None:
                self._vault.close()

    def _counted(self) -> dict[str, Any]:
        """What the node should know, whatever was asked."""
        if self._vault is None:
            return {}
        login = self._vault.login
        return {"logins": login.logins, "token": list(login.state)}

    def _answer(self, call: str, given: list[Any]) -> dict[str, Any]:
        try:
            return {"gives": self._call(call, given)}
        except VaultError as error:
            text = [type(error).__name__, str(error), error.hint]
            return {"error": text, "retry": error.retry}
        except (Ended, Broken):
            raise
        except Exception as error:
            # Its text may hold anything; where it happened does not.
            (*_, place) = traceback.extract_tb(error.__traceback__)
            where = f"{type(error).__name__} at {os.path.basename(place.filename)}:{place.lineno}"
            return {
                "error": ["VaultError", f"a bug in the vault's process: {where}", ""],
                "retry": False,
            }

    def _call(self, call: str, given: list[Any]) -> Any:
        if call == "open":
            return self._open(*given)
        if call not in CALLS or self._vault is None:
            raise VaultError(f"there is no call {call[:40]!r}")
        return CALLS[call](self._vault, *given)

    def _open(self, text: str, state_dir: str, seen: list[Any]) -> None:
        uri = parse(text, allow_pin_value=True)  # it was allowed there
        assert isinstance(uri, Pkcs11Uri)
        if uri.pin_value is not None:
            self._complaints.secrets.add(uri.pin_value)
        elif uri.pin_source != ASK:
            self._complaints.source = uri.pin_source
        self._vault = vault = Pkcs11Vault(uri, self._ask, Path(state_dir))
        vault.verifies = False  # whoever asked does it, and does not trust us
        vault.login.state = TokenState(*seen)

    def _ask(self, prompt: str) -> str | None:
        """Ask the person at the other process; their time is not the module's."""
        faulthandler.cancel_dump_traceback_later()
        self._conversation.send({"ask": prompt})
        answer: str | None = self._conversation.receive()["answer"]
        _Watchdog(self._limit).__enter__()
        if answer:
            self._complaints.secrets.add(answer)
        return answer


class _Watchdog:
    """Ends this process when the block lasts too long, whoever holds the GIL."""

    def __init__(self, limit: float) -> None:
        self._limit = limit

    def __enter__(self) -> None:
        faulthandler.dump_traceback_later(self._limit + PATIENCE, exit=True)

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()


def _key(kind: str, label: str) -> Key:
    return Key(Kind(kind), label)


CALLS: dict[str, Callable[..., Any]] = {
    "kinds": lambda vault: sorted(kind.value for kind in vault.kinds),
    "generate": lambda vault, kind, label: vault.generate(Kind(kind), label) and None,
    "keys": lambda vault: [[key.kind.value, key.label] for key in vault.keys()],  # noqa: SIM118
    "public": lambda vault, kind, label: vault.public(_key(kind, label)),
    "sign": lambda vault, kind, label, data: vault.sign(_key(kind, label), data),
    "delete": lambda vault, kind, label: vault.delete(_key(kind, label)),
    "describe": lambda vault, kind, label: vault.describe(_key(kind, label)),
    "pin": lambda vault, kind, label, *given: vault.pin(_key(kind, label), *given),
    "provision": Pkcs11Vault.provision,
    "seal": Pkcs11Vault.seal,
    "unseal": Pkcs11Vault.unseal,
    "state": lambda vault: list(vault.state()),
    "probe": Pkcs11Vault.probe,
    "reopen": Pkcs11Vault.reopen,
}
