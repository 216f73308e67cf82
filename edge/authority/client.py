"""Client: asks an authority, over a channel that is open already (05 §1.3 to §1.6)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from edge.authority.changes import Told, decode_told, encode_question
from edge.authority.service import ACCEPTOR, CHANGES, CREDENTIALS, ISSUER, MEMBERS
from edge.errors import ApiError
from edge.identity import authority_api as api
from edge.identity.credential import Credential
from edge.identity.history import ChangeHistory, Identifier
from edge.routing.router import Router
from edge.routing.secure import SecureChannel
from edge.wire.api import Method, Request, Response, Status
from edge.wire.route import Address, Route

ALREADY = "already a member"
"""What stock looks for in the text, in any case (05 §2.4)."""


class AlreadyMember(ApiError):
    """The ticket was not spent: we are in already."""


class Client:
    """One authority, at the other end of `channel`. Answers are waited for `timeout` seconds.

    Every method raises ApiError for an answer that is not OK, with the authority's words; NetworkError
    where none comes; DecodeError where it cannot be read."""

    def __init__(self, router: Router, channel: SecureChannel, *, timeout: float = 30.0) -> None:
        self._router, self._channel, self._timeout = router, channel, timeout

    @property
    def authority(self) -> Identifier:
        return self._channel.peer

    @property
    def history(self) -> ChangeHistory:
        """That of the authority, as it has just proved it."""
        return self._channel.history

    async def redeem(self, code: bytes) -> None:
        """Become a member by a one-time code. AlreadyMember where we are one."""
        await self._ask(ACCEPTOR, Method.POST, "/", api.encode_code(code))

    async def credential(self) -> Credential:
        """Ours, fresh. Whether it holds is the caller's to verify."""
        return Credential.decode(await self._body(CREDENTIALS, Method.POST, "/"))

    async def create_token(
        self, attributes: Mapping[str, str], lifetime: int | None = None, uses: int | None = None
    ) -> bytes:
        """A one-time code of 32 bytes."""
        wanted = api.CreateToken(dict(attributes), lifetime, uses)
        return api.decode_code(await self._body(ISSUER, Method.POST, "/", wanted.encode()))

    async def add_member(self, identifier: Identifier, attributes: Mapping[str, str]) -> None:
        wanted = api.AddMember(identifier, dict(attributes))
        await self._ask(MEMBERS, Method.POST, "/", wanted.encode())

    async def members(self) -> dict[Identifier, api.MemberEntry]:
        return api.decode_members(await self._body(MEMBERS, Method.GET, "/"))

    async def member_ids(self) -> list[Identifier]:
        return api.decode_identifiers(await self._body(MEMBERS, Method.GET, "/member_ids"))

    async def member(self, identifier: Identifier) -> api.MemberEntry:
        return api.MemberEntry.decode(await self._body(MEMBERS, Method.GET, f"/{identifier}"))

    async def delete_member(self, identifier: Identifier) -> None:
        await self._ask(MEMBERS, Method.DELETE, f"/{identifier}")

    async def delete_members(self) -> None:
        """All whom we may delete, but ourselves."""
        await self._ask(MEMBERS, Method.DELETE, "/members")

    async def changes(self, since: int) -> Told:
        """Members that were removed or changed after the number `since`, when there are some, or after
        changes.PATIENCE seconds. Our own authorities and hubs only."""
        return decode_told(await self._body(CHANGES, Method.POST, "/", encode_question(since)))

    async def _body(
        self, service: bytes, method: Method, path: str, body: bytes | None = None
    ) -> bytes:
        answer = await self._ask(service, method, path, body)
        if answer is None:
            raise ApiError(f"{service.decode()} answered without what was asked for")
        return answer

    async def _ask(
        self, service: bytes, method: Method, path: str, body: bytes | None = None
    ) -> bytes | None:
        request = Request(1 + secrets.randbelow(0xFFFF_FFFE), path, method, body)
        route = Route.of(Address(0, self._channel.address), Address(0, service))
        message = await self._router.request(route, request.encode(), timeout=self._timeout)
        response = Response.decode(bytes(message.payload))
        if response.status is Status.OK:
            return response.body
        raise _refusal(service, response)


def _refusal(service: bytes, response: Response) -> ApiError:
    status = int(response.status or 0)
    said = response.error or f"status {status}"
    if ALREADY in said.lower():
        return AlreadyMember(said, status=status)
    return ApiError(f"the authority refused: {said}", status=status, hint=_HINTS.get(said, ""))


_HINTS = {
    "unauthorized member": "this identity is not a member: enroll it with a ticket, or let an "
    "enroller add it (ockam-edge project-member add)",
    "Unknown enrollment token": "the ticket is wrong, or of another authority; ask for a new one",
    "Unknown enrollment token: it has expired": "ask for a new ticket: ockam-edge project ticket",
    "Unknown enrollment token: it is used up": "somebody has used the ticket; if that was not this "
    "device, tell whoever made it",
}
