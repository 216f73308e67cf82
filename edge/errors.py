"""Every error of the node, by whose fault it is and what to do about it.

    EdgeError                      message, hint, exit_code, retry
    |-- ProtocolError              the peer broke the rules; nothing is explained to it
    |   |-- DecodeError            these bytes are not a message; the only thing a decoder raises
    |   |-- HandshakeError         the proof failed
    |   `-- RecordError            bad tag, old or repeated nonce
    |-- TrustError                 well-formed, but not accepted: signature, expiry, authority, policy
    |-- NetworkError               unreachable, refused, timed out, lost; worth another try
    |-- ApiError                   the other side answered with an error status
    |-- ConfigError                the operator must change something
    `-- StateError                 we were used wrongly: a bug

`vault_backends` has a root of its own (VaultError) with the same three attributes, since it does not
import this package; the command line and the sessions treat both alike.
"""


class EdgeError(Exception):
    """What the node raises. `hint` says what to do, `exit_code` what the command exits with, `retry`
    whether the same thing may work later."""

    exit_code = 70
    retry = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ProtocolError(EdgeError):
    """The peer broke the rules."""


class DecodeError(ProtocolError):
    """These bytes are not a message."""


class HandshakeError(ProtocolError):
    """The peer's proof failed; the state is as it was before the message."""


class RecordError(ProtocolError):
    """A record with a bad tag, or an old or repeated nonce; it changes nothing."""


class TrustError(EdgeError):
    """Well-formed, but not accepted."""


class NetworkError(EdgeError):
    """Unreachable, refused, timed out or lost."""

    retry = True


class ApiError(EdgeError):
    """The other side answered a request with an error status."""

    def __init__(self, message: str, *, status: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ConfigError(EdgeError):
    """The operator must change something; the message names it."""


class StateError(EdgeError):
    """The code was used wrongly: a bug."""
