"""The device: 16 sessions over one store, one frame in, one frame out."""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tests.tokens.yubihsm import commands
from tests.tokens.yubihsm.channel import Channel
from tests.tokens.yubihsm.constants import Algorithm, Command, DeviceError, Error, Type
from tests.tokens.yubihsm.frames import LONGEST, Frame, Reader, answer, failure
from tests.tokens.yubihsm.store import Object, Store

SESSIONS = 16
IDLE_SECONDS = 30.0
_FIRMWARE, _PART = (2, 4, 0), b"SIMULATED"


@dataclass
class _Session:
    user: Object
    channel: Channel
    used: float  # by the device's clock


class Device:
    """Not for more than one thread at a time, as the real one."""

    def __init__(
        self,
        *,
        serial: int = 7550057,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = Store()
        self.serial = serial
        self.idle_seconds = idle_seconds
        self.counted: Counter[str] = Counter()  # commands by name, and failures by theirs
        self._clock = clock
        self._sessions: dict[int, _Session] = {}
        self._taken = 0  # sessions that others hold, for tests

    def take(self, sessions: int) -> None:
        """Others hold that many sessions and keep using them: they never expire."""
        self._taken = sessions

    def reboot(self) -> None:
        """Power off and on: objects stay, sessions do not."""
        self._sessions.clear()

    @property
    def sessions(self) -> int:
        self._expire()
        return len(self._sessions)

    def exchange(self, raw: bytes) -> bytes:
        try:
            frame = Frame.parse(raw)
            self.counted[_name(frame.command)] += 1
            return self._outer(frame).encode()
        except DeviceError as error:
            self.counted[error.code.name] += 1
            return failure(error.code).encode()

    def _outer(self, frame: Frame) -> Frame:
        match frame.command:
            case Command.ECHO:
                return answer(frame.command, frame.data)
            case Command.DEVICE_INFO:
                return answer(frame.command, self._info(Reader(frame.data)))
            case Command.CREATE_SESSION:
                return answer(frame.command, self._create(Reader(frame.data)))
            case Command.AUTHENTICATE_SESSION:
                return self._authenticate(frame)
            case Command.SESSION_MESSAGE:
                return self._message(frame)
        raise DeviceError(Error.INVALID_COMMAND)

    def _info(self, fields: Reader) -> bytes:
        if not fields.done():  # since 2.4: the second page, with the part's number
            if fields.number(1) != 1:
                raise DeviceError(Error.INVALID_DATA)
            fields.end()
            return _PART
        log_room, log_used = 62, 0
        return (
            bytes(_FIRMWARE)
            + self.serial.to_bytes(4)
            + bytes([log_room, log_used])
            + bytes(sorted(Algorithm))
        )

    # --- sessions

    def _create(self, fields: Reader) -> bytes:
        key_id, host_challenge = fields.number(2), fields.take(8)
        fields.end()
        user = self.store.get(Type.AUTHENTICATION_KEY, key_id)
        self._expire()
        free = [n for n in range(SESSIONS - self._taken) if n not in self._sessions]
        if not free:
            raise DeviceError(Error.SESSIONS_FULL)
        card_challenge = os.urandom(8)
        channel = Channel(user.secret, host_challenge, card_challenge)
        self._sessions[free[0]] = _Session(user, channel, self._clock())
        return bytes([free[0]]) + card_challenge + channel.card_cryptogram

    def _authenticate(self, frame: Frame) -> Frame:
        number, session = self._session(frame, authenticated=False)
        try:
            session.channel.authenticate(frame)
        except DeviceError:
            del self._sessions[number]
            raise
        return answer(frame.command, b"")

    def _message(self, frame: Frame) -> Frame:
        number, session = self._session(frame, authenticated=True)
        inner = session.channel.open(frame)
        said = self._inner(session, inner)
        if len(said.data) > LONGEST - 32:  # the session's own bytes and padding
            said = failure(Error.WRONG_LENGTH)
        sealed = session.channel.seal(number, said.encode())
        if said.command == Command.CLOSE_SESSION | 0x80:
            self._sessions.pop(number, None)
        if said.command == Command.RESET_DEVICE | 0x80:
            self.reboot()
        return sealed

    def _inner(self, session: _Session, raw: bytes) -> Frame:
        try:
            frame = Frame.parse(raw)
            self.counted[_name(frame.command)] += 1
            if frame.command == Command.CLOSE_SESSION:
                return answer(frame.command, b"")
            if frame.command == Command.DEVICE_INFO:
                return answer(frame.command, self._info(Reader(frame.data)))
            return answer(
                frame.command, commands.run(frame.command, self.store, session.user, frame.data)
            )
        except DeviceError as error:
            self.counted[error.code.name] += 1
            return failure(error.code)

    def _session(self, frame: Frame, *, authenticated: bool) -> tuple[int, _Session]:
        self._expire()
        number = Reader(frame.data).number(1)
        session = self._sessions.get(number)
        if session is None or session.channel.authenticated != authenticated:
            raise DeviceError(Error.INVALID_SESSION)
        session.used = self._clock()
        return number, session

    def _expire(self) -> None:
        oldest = self._clock() - self.idle_seconds
        self._sessions = {n: one for n, one in self._sessions.items() if one.used >= oldest}


def _name(command: int) -> str:
    return Command(command).name if command in set(Command) else f"0x{command:02x}"
