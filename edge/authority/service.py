"""The authority's services: what arrives at its addresses, and what is answered (05 §1.3 to §1.6).

Each is reachable through a secure channel only; the caller is whoever the channel proved. Where the
reference says nothing on bad input, 400 is answered.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import string
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from edge.authority import rights as rights_
from edge.authority.changes import Bulletin, decode_question, encode_told
from edge.authority.issuer import Issuer
from edge.authority.places import Places
from edge.authority.registry import Member, Redemption, Registry, Token, code_hash
from edge.authority.rights import Rights, is_enroller, unfit
from edge.errors import DecodeError, EdgeError
from edge.events import event
from edge.identity import authority_api as api
from edge.identity.credential import Credential
from edge.identity.history import ChangeHistory, Identifier
from edge.routing.hop import Message
from edge.routing.reach import Origin, Wiring
from edge.routing.router import Router
from edge.routing.secure import SecureChannel
from edge.tasks import keep_running
from edge.wire.api import Failure, Method, Request, Response, Status
from edge.wire.route import Route
from vault_backends.vault import VaultError

log = logging.getLogger("edge.authority")

MEMBERS, ISSUER = b"direct_authenticator", b"enrollment_token_issuer"
ACCEPTOR, CREDENTIALS = b"enrollment_token_acceptor", b"credential_issuer"
CHANGES = b"member_changes"
"""Ours: which members were removed or changed since the last time (no stock node asks)."""
LIFETIME, USES = 600, 1
"""Of a token, where the enroller does not say (05 §1.4)."""
LONGEST = 366 * 24 * 3600
MOST_USES = 1_000_000
AT_ONCE = 1024
"""Requests in progress; more are dropped, and their clients ask again."""
PER_CALLER = 8
"""Of them by one identity."""
WAITING, PER_WAITER = 20_000, 4
"""The same for those who wait for changes of members."""
LOOK = 1.0
"""Seconds between two looks for changes by another process."""
_REFERENCE = string.ascii_letters + string.digits


class Call(NamedTuple):
    """A request, and who makes it. Who redeems a token is not looked up: that is part of redeeming."""

    request: Request
    caller: Identifier
    history: ChangeHistory
    member: Member | None
    rights: Rights


class Refused(EdgeError):
    """What the caller is told, and with which status."""

    def __init__(self, message: str, status: Status = Status.FORBIDDEN) -> None:
        super().__init__(message)
        self.status = status


class Settings(NamedTuple):
    """How an authority is run: whether enrollers may add members (`direct`), whether there are
    enrollment tokens, and whether enrollers are no admins (`account_only`)."""

    project_id: str
    direct: bool = True
    tokens: bool = True
    account_only: bool = False


Serve = Callable[[Call], Awaitable[bytes | None]]


class Authority:
    """Answers for one authority."""

    def __init__(
        self,
        router: Router,
        wiring: Wiring,
        registry: Registry,
        issuer: Issuer,
        settings: Settings,
        *,
        clock: Callable[[], int],
        attributes_of: Callable[[Identifier], Mapping[str, str] | None] = lambda peer: None,
    ) -> None:
        """`attributes_of`: what the account authority says of somebody, None for nothing."""
        self.registry = registry
        self.bulletin = Bulletin()
        self.answered: Counter[str] = Counter()
        """By the name of the status."""
        self._issuer, self._settings, self._clock = issuer, settings, clock
        self._router, self._wiring = router, wiring
        self._attributes_of = attributes_of
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = Places(AT_ONCE, PER_CALLER)
        self._waiting = Places(WAITING, PER_WAITER)
        self._desks = self._opened()
        self._watching = keep_running(self._watch(), "watch the registry")

    def _opened(self) -> list[_Desk]:
        desks: list[tuple[bytes, Serve]] = [
            (CREDENTIALS, self._credential),
            (CHANGES, self._changes),
        ]
        if self._settings.direct:
            desks.append((MEMBERS, self._members))
        if self._settings.tokens:
            desks += [(ISSUER, self._create_token), (ACCEPTOR, self._redeem)]
        made = [_Desk(self, address, serve) for address, serve in desks]
        for desk in made:
            self._router.add(desk.address, desk)
            self._wiring.open(desk.address, Origin.CHANNEL)
        return made

    async def close(self) -> None:
        for desk in self._desks:
            self._router.remove(desk.address)
            self._wiring.shut(desk.address)
        ending = [*self._tasks, self._watching]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await self.registry.close()

    # -- one request

    def take(self, desk: _Desk, message: Message) -> None:
        """A message at a desk. What does not decode gets no answer: there is nothing to answer to."""
        try:
            request = Request.decode(bytes(message.payload))
        except DecodeError as error:
            log.debug("a request does not decode: %s", error)
            return
        channel = message.flow
        kept = Message(message.onward, message.back, b"", channel)  # the payload goes now
        if not isinstance(channel, SecureChannel):
            failure = Failure(message="secure channel required")
            self._reply(desk, kept, Response(_id(), 0, Status.BAD_REQUEST, failure.encode()))
            return
        if not self._places(desk).take(channel.peer):
            log.warning(
                "too many requests at once: one of %s is dropped",
                channel.peer,
                extra=event("authority-busy", peer=channel.peer),
            )
            return
        task = asyncio.create_task(self._answer(desk, request, channel, kept))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _places(self, desk: _Desk) -> Places:
        """Who waits for changes takes no place from who asks for something else."""
        return self._waiting if desk.address == CHANGES else self._busy

    async def _answer(
        self, desk: _Desk, request: Request, channel: SecureChannel, message: Message
    ) -> None:
        try:
            member, rights = None, Rights()
            if desk.address != ACCEPTOR:
                member, rights = await self._known(channel.peer)
            call = Call(request, channel.peer, channel.history, member, rights)
            body = await desk.serve(call)
            response = Response(_id(), request.id, Status.OK, body)
        except Refused as refused:
            response = self._refusal(channel.peer, request, refused.status, str(refused))
        except DecodeError as error:
            response = self._refusal(channel.peer, request, Status.BAD_REQUEST, str(error))
        except (EdgeError, VaultError) as error:
            log.error(
                "%s cannot be served: %s",
                desk.address.decode(),
                error,
                extra=event("authority-failed", error),
            )
            response = self._refusal(
                channel.peer, request, Status.INTERNAL_SERVER_ERROR, "the authority has a problem"
            )
        finally:
            self._places(desk).leave(channel.peer)
        self.answered[response.status.name if response.status else ""] += 1
        self._reply(desk, message, response)

    def _refusal(self, caller: Identifier, request: Request, status: Status, text: str) -> Response:
        log.info(
            "refused %s, who asked %r: %s",
            caller,
            request.path[:80],
            text,
            extra=event("authority-refused", peer=caller),
        )
        failure = Failure(message=text, path=request.path, method=request.method)
        return Response(_id(), request.id, status, failure.encode())

    def _reply(self, desk: _Desk, message: Message, response: Response) -> None:
        self._router.reply(message, desk.back, response.encode())

    async def _known(self, caller: Identifier) -> tuple[Member | None, Rights]:
        said = self._attributes_of(caller) or {}
        account = said.get(rights_.PROJECT) == self._settings.project_id
        member = await self.registry.member(caller)
        account_only = self._settings.account_only
        return member, rights_.rights(member, account=account, account_only=account_only)

    # -- credentials

    async def _credential(self, call: Call) -> bytes | None:
        _only_path(call, "/credential")
        if call.rights.account:
            attributes = {rights_.RELAY.encode(): b"*", b"ockam-tls-certificate": b"true"}
        elif call.member is not None:
            attributes = dict(call.member.attributes)
        else:
            raise Refused("unauthorized member")
        since = call.member.added_at if call.member is not None else 0
        credential: Credential = await self._issuer.issue(call.history, attributes, after=since)
        return credential.encoded

    # -- tokens

    async def _create_token(self, call: Call) -> bytes | None:
        _only_path(call, "/tokens")
        wanted = api.CreateToken.decode(call.request.body)
        if not call.rights.enroller:
            raise Refused("Non-enroller is trying to issue an enrollment token")
        if is_enroller(wanted.attributes) and not call.rights.admin:
            raise Refused("Not admin is trying to issue an enrollment token for an enroller")
        lifetime = LIFETIME if wanted.lifetime is None else wanted.lifetime
        uses = USES if wanted.uses is None else max(wanted.uses, 1)
        if not 0 < lifetime <= LONGEST or uses > MOST_USES:
            raise Refused(
                f"a token lives 1 to {LONGEST} s and has 1 to {MOST_USES} uses", Status.BAD_REQUEST
            )
        _check(wanted.attributes)
        code, now = secrets.token_bytes(api.CODE_BYTES), self._clock()
        reference = "".join(secrets.choice(_REFERENCE) for _ in range(10))
        await self.registry.add_token(
            Token(
                code_hash(code), reference, call.caller, now, now + lifetime, uses,
                _bytes(wanted.attributes),
            )
        )  # fmt: skip
        log.info(
            "token %s: made by %s, %d uses in %d s",
            reference,
            call.caller,
            uses,
            lifetime,
            extra=event("ticket-made", reference=reference, peer=call.caller),
        )
        return api.encode_code(code)

    async def _redeem(self, call: Call) -> bytes | None:
        _only_path(call, "/credential")
        code = api.decode_code(call.request.body)
        redeemed = await self.registry.redeem(code_hash(code), call.caller, self._clock())
        named = redeemed.reference or "(unknown)"
        if redeemed.outcome is Redemption.JOINED:
            log.info(
                "token %s: %s is a member now",
                named,
                call.caller,
                extra=event("ticket-redeemed", reference=named, peer=call.caller),
            )
            return None
        log.info(
            "token %s: %s did not join: %s",
            named,
            call.caller,
            redeemed.outcome.name,
            extra=event("ticket-refused", reference=named, peer=call.caller),
        )
        raise Refused(_REDEEMED[redeemed.outcome])

    # -- members

    async def _members(self, call: Call) -> bytes | None:
        method, segments = call.request.method, call.request.segments
        if segments[:1] == ["members"]:
            segments = segments[1:] or [""]
        if len(segments) != 1:
            raise _unknown_path()
        one = segments[0]
        if method is Method.POST and not one:
            return await self._add_member(call)
        if method is Method.GET and not one:
            return await self._list_members(call)
        if method is Method.GET and one == "member_ids":
            self._enroller(call, "list members")
            return api.encode_identifiers([m.identifier for m in await self.registry.members()])
        if method is Method.GET:
            return await self._show_member(call, Identifier.parse(one))
        if method is Method.DELETE and one:
            return await self._delete_member(call, Identifier.parse(one))
        if method is Method.DELETE and call.request.segments == ["members"]:
            return await self._delete_members(call)
        raise _unknown_path()

    def _enroller(self, call: Call, what: str) -> None:
        if not call.rights.enroller:
            raise Refused(f"Non-enroller is trying to {what}")

    async def _add_member(self, call: Call) -> bytes | None:
        wanted = api.AddMember.decode(call.request.body)
        if not call.rights.enroller:
            raise Refused(
                f"Non-enroller {call.caller} is trying to add a member {wanted.identifier}"
            )
        if is_enroller(wanted.attributes) and not call.rights.admin:
            raise Refused("Not pre trusted enroller is trying to create an enroller")
        _check(wanted.attributes)
        before = await self.registry.member(wanted.identifier)
        if before is not None and is_enroller(before.attributes) and not call.rights.admin:
            raise Refused("Not admin is trying to change an enroller")
        await self.registry.put(
            Member(wanted.identifier, _bytes(wanted.attributes), call.caller, self._after(before))
        )
        await self.post()
        log.info(
            "member %s: added by %s",
            wanted.identifier,
            call.caller,
            extra=event("member-added", peer=wanted.identifier),
        )
        return None

    async def _list_members(self, call: Call) -> bytes | None:
        self._enroller(call, "list members")
        members = await self.registry.members()
        return api.encode_members({member.identifier: _entry(member) for member in members})

    async def _show_member(self, call: Call, identifier: Identifier) -> bytes | None:
        self._enroller(call, "retrieve a member")
        member = await self.registry.member(identifier)
        if member is None:
            raise Refused(f"Member {identifier} not found")
        return _entry(member).encode()

    async def _delete_member(self, call: Call, identifier: Identifier) -> bytes | None:
        self._enroller(call, "delete a member")
        member = await self.registry.member(identifier)
        if member is not None:
            reason = _kept(member, call.rights)
            if reason is not None:
                raise Refused(reason)
            await self._remove(member, call.caller)
        return None

    async def _delete_members(self, call: Call) -> bytes | None:
        self._enroller(call, "delete a member")
        for member in await self.registry.members():
            if member.identifier != call.caller and _kept(member, call.rights) is None:
                await self._remove(member, call.caller)
        return None

    async def _remove(self, member: Member, caller: Identifier) -> None:
        if await self.registry.remove(member.identifier, self._after(member)):
            await self.post()
            log.info(
                "member %s: removed by %s",
                member.identifier,
                caller,
                extra=event("member-removed", peer=member.identifier),
            )

    def _after(self, before: Member | None) -> int:
        """Now, in seconds, but not the second in which the member became what it was until now: what
        was said of it then was made one later (see _credential)."""
        return max(self._clock(), before.added_at + 1 if before is not None else 0)

    # -- what changed

    async def _changes(self, call: Call) -> bytes | None:
        """For members only; answered when there is something to tell (changes.py)."""
        if not call.rights.member:
            raise Refused("unauthorized member")
        return encode_told(await self.bulletin.since(decode_question(call.request.body)))

    async def _watch(self) -> None:
        """Another authority process may use the same registry. A database that is away is said once."""
        away = False
        while True:
            try:
                await self.post()
            except EdgeError as error:
                if not away:
                    log.error(
                        "%s; %s",
                        error,
                        error.hint or "nobody can enroll until that ends",
                        extra=event("database-away", error),
                    )
                away = True
            else:
                if away:
                    log.warning("the authority's database is back", extra=event("database-back"))
                away = False
            await asyncio.sleep(LOOK)

    async def post(self) -> None:
        """Tell those who wait what the registry has that is new."""
        latest = await self.registry.latest_change()
        if latest > self.bulletin.number:
            for change in await self.registry.changes(self.bulletin.number):
                self.bulletin.post(change)
            self.bulletin.reach(latest)


class _Desk:
    """One address of the authority."""

    def __init__(self, authority: Authority, address: bytes, serve: Serve) -> None:
        self.address, self.serve = address, serve
        self.back = Route.of(address)
        self._authority = authority

    def deliver(self, message: Message) -> None:
        self._authority.take(self, message)


_REDEEMED = {
    Redemption.ALREADY_MEMBER: "Already a member",
    Redemption.UNKNOWN: "Unknown enrollment token",
    Redemption.EXPIRED: "Unknown enrollment token: it has expired",
    Redemption.USED_UP: "Unknown enrollment token: it is used up",
}
"""The first words are the reference's, who cannot tell the last three apart. Only who has the code
learns more."""


def _only_path(call: Call, alias: str) -> None:
    """These three services compare the whole path (05 §0.2)."""
    if call.request.path not in ("/", alias):
        raise _unknown_path()
    if call.request.method is not Method.POST:
        raise Refused("method not allowed", Status.METHOD_NOT_ALLOWED)


def _unknown_path() -> Refused:
    return Refused("unknown path", Status.BAD_REQUEST)


def _check(attributes: Mapping[str, str]) -> None:
    reason = unfit(attributes)
    if reason is not None:
        raise Refused(reason, Status.BAD_REQUEST)


def _kept(member: Member, rights: Rights) -> str | None:
    """Why this member may not be deleted by somebody with these rights."""
    if member.pre_trusted:
        return "Enroller is trying to delete a pre trusted identity"
    if is_enroller(member.attributes) and not rights.admin:
        return "Not admin is trying to delete an enroller"
    return None


def _entry(member: Member) -> api.MemberEntry:
    return api.MemberEntry(dict(member.attributes), member.added_at, member.added_by)


def _bytes(attributes: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in attributes.items()}


def _id() -> int:
    return 1 + secrets.randbelow(0xFFFF_FFFE)
