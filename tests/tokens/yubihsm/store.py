"""What the device keeps: objects by kind and id, each in domains and with capabilities."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.tokens.yubihsm.channel import keys_of
from tests.tokens.yubihsm.constants import (
    ALL_CAPABILITIES,
    ALL_DOMAINS,
    Algorithm,
    DeviceError,
    Error,
    Type,
)

GENERATED, IMPORTED = 1, 2
LABEL_LENGTH = 40
_ROOM = 256  # objects
_HIGHEST_ID = 0xFFFE


@dataclass
class Object:
    """`secret` is what the algorithm needs: bytes, or a private key of `cryptography`."""

    id: int
    type: Type
    algorithm: Algorithm
    label: bytes  # 40 bytes
    domains: int
    capabilities: int
    secret: Any
    length: int  # of the secret, in bytes
    origin: int = IMPORTED
    delegated: int = 0  # authentication keys: what objects made under them may have
    sequence: int = 0

    def record(self) -> bytes:
        """The 66 bytes of "get object info"."""
        return b"".join((
            self.capabilities.to_bytes(8),
            self.id.to_bytes(2),
            self.length.to_bytes(2),
            self.domains.to_bytes(2),
            bytes([self.type, self.algorithm, self.sequence, self.origin]),
            self.label,
            self.delegated.to_bytes(8),
        ))  # fmt: skip


def label(text: str) -> bytes:
    return text.encode().ljust(LABEL_LENGTH, b"\0")


class Store:
    def __init__(self) -> None:
        self._objects: dict[tuple[Type, int], Object] = {}
        self._made: dict[tuple[Type, int], int] = {}  # how often, for the sequence number
        self.reset()

    def reset(self) -> None:
        """As from the factory: authentication key 1 with the password `password`."""
        self._objects.clear()
        self._made.clear()
        self.add_authentication_key(1, "password", text="DEFAULT AUTHKEY CHANGE THIS ASAP")

    def add_authentication_key(
        self,
        key_id: int,
        password: str,
        *,
        text: str = "",
        domains: int = ALL_DOMAINS,
        capabilities: int = ALL_CAPABILITIES,
        delegated: int = ALL_CAPABILITIES,
    ) -> None:
        kind, algorithm = Type.AUTHENTICATION_KEY, Algorithm.YUBICO_AES_AUTHENTICATION
        secret = keys_of(password)
        self.add(
            Object(
                key_id, kind, algorithm, label(text), domains, capabilities,
                secret, len(secret), delegated=delegated,
            )
        )  # fmt: skip

    def add(self, new: Object) -> None:
        """Takes the object, giving it an id if it has none (0) and its sequence number."""
        if len(self._objects) >= _ROOM:
            raise DeviceError(Error.STORAGE_FAILED)
        if new.id > _HIGHEST_ID:
            raise DeviceError(Error.INVALID_ID)
        if not new.id:
            new.id = next(n for n in range(1, _HIGHEST_ID) if (new.type, n) not in self._objects)
        place = (new.type, new.id)
        if place in self._objects:
            raise DeviceError(Error.OBJECT_EXISTS)
        new.sequence = self._made.get(place, 0) % 256
        self._made[place] = self._made.get(place, 0) + 1
        self._objects[place] = new

    def get(self, kind: int, object_id: int, domains: int = ALL_DOMAINS) -> Object:
        """OBJECT_NOT_FOUND also for one that is in none of these domains."""
        found = next((one for one in self if (one.type, one.id) == (kind, object_id)), None)
        if found is None or not found.domains & domains:
            raise DeviceError(Error.OBJECT_NOT_FOUND)
        return found

    def remove(self, gone: Object) -> None:
        del self._objects[gone.type, gone.id]

    def free(self) -> int:
        return _ROOM - len(self._objects)

    def __iter__(self) -> Iterator[Object]:
        return iter(self._objects.values())
