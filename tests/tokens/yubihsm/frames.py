"""Frames (command u8, length u16, data), and taking their data apart."""

from typing import NamedTuple, Self

from tests.tokens.yubihsm.constants import Command, DeviceError, Error

LONGEST = 3136  # data of one frame, firmware 2.4


class Frame(NamedTuple):
    command: int
    data: bytes = b""

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """DeviceError if `raw` is not one frame, whole."""
        if len(raw) < 3 or len(raw) - 3 > LONGEST or int.from_bytes(raw[1:3]) != len(raw) - 3:
            raise DeviceError(Error.WRONG_LENGTH)
        return cls(raw[0], raw[3:])

    def encode(self) -> bytes:
        return bytes([self.command]) + len(self.data).to_bytes(2) + self.data


def answer(command: int, data: bytes) -> Frame:
    return Frame(command | 0x80, data)


def failure(code: Error) -> Frame:
    return Frame(Command.ERROR, bytes([code]))


class Reader:
    """The fields of a command, in order. WRONG_LENGTH if there are too few or too many."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, length: int) -> bytes:
        if length > len(self._data):
            raise DeviceError(Error.WRONG_LENGTH)
        taken, self._data = self._data[:length], self._data[length:]
        return taken

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length))

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def done(self) -> bool:
        return not self._data

    def end(self) -> None:
        if self._data:
            raise DeviceError(Error.WRONG_LENGTH)
