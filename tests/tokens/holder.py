"""A vault in a process of its own, as a user's process holds it: one command per line, one answer.

    python -m tests.tokens.holder URI STATE_DIR|- [apart]

The other end is Holder. Each scenario gets a fresh process, so that a module finds the environment it
is to find, may crash, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from edge.keyring import Keyring
from vault_backends import open_vault, vault
from vault_backends.vault import Key, Kind, Vault, VaultError

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


class Crashed(Exception):
    """The holding process ended in the middle of a command. `status` as in Popen.returncode."""

    def __init__(self, status: int) -> None:
        super().__init__(f"ended with {status}")
        self.status = status


class Holder:
    """A vault in another process. Errors of the vault are raised here as what they were there."""

    def __init__(
        self,
        uri: str,
        variables: Mapping[str, str],
        *,
        state_dir: Path | None = None,
        apart: bool = False,
        prefix: tuple[str, ...] = (),
        python: str = sys.executable,
    ) -> None:
        command = [*prefix, python, "-m", "tests.tokens.holder", uri, str(state_dir or "-")]
        command += ["apart"] if apart else []
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, *, patience: float = PATIENCE, **given: Any) -> Any:
        self.tell(do, **given)
        return self.answer(patience)

    def tell(self, do: str, **given: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **given}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Crashed(self._process.wait(5)) from None

    def answer(self, patience: float = PATIENCE) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        if not ready:
            raise TimeoutError(f"no answer within {patience:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise Crashed(self._process.wait(5))
        said = json.loads(line)
        if "error" in said:
            kind: type[VaultError] = getattr(vault, said["error"])
            raise kind(said["message"], hint=said["hint"], retry=said["retry"])
        return said["is"]

    # The six methods, and those of tokens.

    def generate(self, kind: Kind, label: str) -> Key:
        self.ask("generate", kind=kind, label=label)
        return Key(kind, label)

    def sign(self, key: Key, data: bytes, *, patience: float = PATIENCE) -> bytes:
        found = self.ask("sign", patience=patience, kind=key.kind, label=key.label, data=data.hex())
        return bytes.fromhex(found)

    def public(self, key: Key) -> bytes:
        return bytes.fromhex(self.ask("public", kind=key.kind, label=key.label))

    def keys(self) -> list[Key]:
        return [Key(Kind(kind), label) for kind, label in self.ask("keys")]

    def delete(self, key: Key) -> None:
        self.ask("delete", kind=key.kind, label=key.label)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(5)

    def end(self) -> str:
        """Orderly where it can be; what it said on standard error."""
        with suppress(BrokenPipeError, OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        if self._process.stderr is None or self._process.stderr.closed:
            return ""
        said = self._process.stderr.read()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        return said


# --- the other end


class _Held:
    """The commands."""

    def __init__(self, uri: str, state_dir: Path | None, apart: bool) -> None:
        self.uri, self.state_dir, self.apart = uri, state_dir, apart
        self._vault: Vault | None = None

    @property
    def vault(self) -> Any:
        if self._vault is None:
            self._vault = open_vault(
                self.uri, state_dir=self.state_dir, **({"apart": True} if self.apart else {})
            )
        return self._vault

    def do(self, said: dict[str, Any]) -> Any:
        key = Key(Kind(said["kind"]), said["label"]) if "kind" in said else None
        data = bytes.fromhex(said["data"]) if "data" in said else b""
        plain: dict[str, Callable[[], Any]] = {
            "generate": lambda: self.vault.generate(Kind(said["kind"]), said["label"]),
            "sign": lambda: self.vault.sign(key, data).hex(),
            "public": lambda: self.vault.public(key).hex(),
            "keys": lambda: list(self.vault.keys()),
            "delete": lambda: self.vault.delete(key),
            "kinds": lambda: sorted(self.vault.kinds),
            "state": lambda: self.vault.state()._asdict(),
            "probe": lambda: self.vault.probe(),  # noqa: PLW0108 - opens it
            "reopen": lambda: self.vault.reopen(),  # noqa: PLW0108 - opens it
            "describe": lambda: self.vault.describe(key),
            "pin": lambda: self.vault.pin(key, data),
            "seal": lambda: self.vault.seal(data, said["aad"].encode()).hex(),
            "unseal": lambda: self.vault.unseal(data, said["aad"].encode()).hex(),
            "make seal key": lambda: self.vault.sealing.provision(),  # noqa: PLW0108
            "logins": lambda: self.vault.logins,
            "fork": lambda: self.fork(key),
            "many": lambda: asyncio.run(self.many(key, said["tasks"])),
            "cancelled": lambda: asyncio.run(self.cancelled(key)),
            "read private": lambda: self.read_private(key),
            "rss": rss_kib,
            "time": lambda: self.time(key, said["seconds"]),
        }
        return plain[said["do"]]()

    def fork(self, key: Key) -> str:
        """What a child of fork gets when it uses the vault; it ends without the module's help."""
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                self.vault.sign(key, b"in the child")
                said = "signed"
            except VaultError as error:
                said = f"refused: {error}"
            os.write(writing, said.encode())
            os._exit(0)
        os.close(writing)
        ready, _, _ = select.select([reading], [], [], 10)
        said = os.read(reading, 4096).decode() if ready else "hung"
        if not ready:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        return said

    async def many(self, key: Key, tasks: int) -> list[str]:
        """Signatures over the numbers from 0 on, all asked for at once."""
        keyring = await Keyring.open(self.uri, state_dir=self.state_dir)
        try:
            signing = [keyring.sign(key, str(number).encode()) for number in range(tasks)]
            return [signature.hex() for signature in await asyncio.gather(*signing)]
        finally:
            await keyring.close()

    async def cancelled(self, key: Key) -> str:
        """Every other one of 20 tasks is cancelled while it runs or waits; then a signature."""
        keyring = await Keyring.open(self.uri, state_dir=self.state_dir)
        try:
            tasks = [asyncio.create_task(keyring.sign(key, b"task")) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, bytes) for one in done[1::2]), done
            assert all(isinstance(one, asyncio.CancelledError) for one in done[::2]), done
            return (await keyring.sign(key, b"after")).hex()
        finally:
            await keyring.close()

    def time(self, key: Key, seconds: float) -> list[float]:
        """Signatures one after the other for so long; the seconds that each took."""
        times: list[float] = []
        stop = time.monotonic() + seconds
        while time.monotonic() < stop or len(times) < 5:
            began = time.perf_counter()
            self.vault.sign(key, b"x" * 64)
            times.append(time.perf_counter() - began)
        return times

    def read_private(self, key: Key) -> str:
        """Ask the module itself for the private value, by a session without our care."""
        from pkcs11 import Attribute, ObjectClass, PKCS11Error  # noqa: PLC0415

        wanted = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: key.label}
        with self.vault.login.logged_in() as session:
            (private,) = list(session.get_objects(wanted))
            try:
                value = private[Attribute.VALUE]
            except PKCS11Error as error:
                return type(error).__name__
        return "empty" if not value else "READ"


def rss_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def main(uri: str, state_dir: str, *apart: str) -> None:
    held = _Held(uri, None if state_dir == "-" else Path(state_dir), bool(apart))
    for line in sys.stdin:
        try:
            answer = {"is": held.do(json.loads(line))}
        except VaultError as error:
            answer = {
                "error": type(error).__name__,
                "message": str(error),
                "hint": error.hint,
                "retry": error.retry,
            }
        print(json.dumps(answer), flush=True)


def first_good(ask: Callable[[], Any], patience: float) -> float:
    """Repeat until it works, as a caller that retries does; how many seconds that took."""
    began = time.monotonic()
    while True:
        try:
            ask()
            return time.monotonic() - began
        except VaultError as error:
            if not error.retry or time.monotonic() - began > patience:
                raise
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
