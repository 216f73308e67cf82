"""Shelf: the things of one kind that a node has, by name: made, kept, listed, deleted, restored.

A creation is confirmed when the thing exists and the disk knows it; when either fails, neither is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edge.errors import EdgeError
from edge.events import event
from edge.node.policies import Policy, read
from edge.node.store import GUARDED, ResourceRecord, Store, Taken, Unknown
from edge.policy.values import text

if TYPE_CHECKING:
    from edge.node.node import Node

log = logging.getLogger("edge.node")

T = TypeVar("T")
Spec = dict[str, Any]
FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0
"""Seconds between attempts to restore something."""


class Entry(Generic[T]):
    """A thing on the shelf; None while it could not be restored, and why."""

    def __init__(self, spec: Spec, thing: T | None = None) -> None:
        self.spec = spec
        self.thing = thing
        self.failure: str | None = None


class Shelf(Generic[T]):
    """What is common to all kinds. A kind says how it is checked, made, unmade and shown."""

    kind: str
    persistent = True
    key = "name"
    """Of a request: where its name is."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.entries: dict[str, Entry[T]] = {}
        self._retries: set[asyncio.Task[None]] = set()

    # -- what a kind says

    def checked(self, body: object) -> tuple[str, Spec]:
        """The name and what is to be kept of a request. Raises ConfigError."""
        raise NotImplementedError  # pragma: no cover

    async def make(self, name: str, spec: Spec) -> T:
        """The thing itself. What it chose, such as a port, it writes into `spec`."""
        raise NotImplementedError  # pragma: no cover

    async def unmake(self, thing: T) -> None:
        raise NotImplementedError  # pragma: no cover

    def status(self, name: str, entry: Entry[T]) -> Spec:
        raise NotImplementedError  # pragma: no cover

    def same(self, there: Spec, wanted: Spec) -> bool:
        """Whether what is there is what is wanted."""
        return there == wanted

    def named(self, name: str, thing: T) -> str:
        """The final name, of things that are named by what they turned out to be."""
        return name

    async def settle(self, name: str, entry: Entry[T], body: object) -> None:
        """Wait for what the creator wants to wait for; raise to have the thing deleted again."""

    def changed(self) -> None:
        """Something was added or has gone."""

    # -- what the node does

    @property
    def things(self) -> list[T]:
        return [entry.thing for entry in self.entries.values() if entry.thing is not None]

    async def create(self, body: object, *, source: str = "command") -> Spec:
        name, spec = self.checked(body)
        async with self.node.changing:
            if name in self.entries:
                raise Taken(
                    f"{self.kind} {name} exists already on node {self.node.name}",
                    hint="choose another name, or delete it first",
                )
            with self._guarded(name, spec.pop("allow", None)) as policy:
                thing = await self.make(name, spec)
                name = self.named(name, thing)
                entry = Entry(spec, thing)
                try:
                    await self._keep(name, spec, policy, source)
                except BaseException:
                    await self._discard(name, thing)
                    raise
            self.entries[name] = entry
            self.changed()
        try:
            await self.settle(name, entry, body)
        except EdgeError:
            if self.entries.get(name) is entry:
                await self.delete(name)
            raise
        return self.status(name, entry)

    def list(self) -> list[Spec]:
        return [self.status(name, entry) for name, entry in self.entries.items()]

    def show(self, name: str) -> Spec:
        return self.status(name, self._entry(name))

    async def delete(self, name: str) -> Spec:
        async with self.node.changing:
            entry = self._entry(name)
            shown = self.status(name, entry)
            if self.persistent:
                await self.node.store.call(Store.remove_resource, self.node.name, self.kind, name)
            del self.entries[name]
            self.changed()
            if entry.thing is not None:
                await self.unmake(entry.thing)
            if self.kind in GUARDED and not self._others(name):
                self.node.policies.remove(resource=name)
            return shown

    def _others(self, name: str) -> bool:
        """Whether a thing of another kind has this name, and so this policy."""
        guarded = [shelf for shelf in self.node.shelves if shelf.kind in GUARDED]
        return any(name in shelf.entries for shelf in guarded)

    def expect(self, record: ResourceRecord) -> None:
        """Something that restore() will make; what it says counts already."""
        self.entries[record.name] = Entry(record.spec)

    async def restore(self) -> None:
        """Make what is expected. What fails is tried again from time to time."""
        for name, entry in list(self.entries.items()):
            if entry.thing is None and not await self._restored(name, entry):
                task = asyncio.create_task(self._retry(name, entry))
                self._retries.add(task)
                task.add_done_callback(self._retries.discard)
        self.changed()

    async def close(self) -> None:
        for task in self._retries:
            task.cancel()
        entries, self.entries = self.entries, {}
        things = [entry.thing for entry in entries.values() if entry.thing is not None]
        await asyncio.gather(*map(self.unmake, things), return_exceptions=True)

    # -- how

    def _entry(self, name: str) -> Entry[T]:
        entry = self.entries.get(name)
        if entry is None:
            there = ", ".join(self.entries) or "none at all"
            raise Unknown(
                f"{self.kind} {name} on node {self.node.name} was not found",
                hint=f"there is: {there}",
            )
        return entry

    @contextmanager
    def _guarded(self, name: str, allow: str | None) -> Iterator[str | None]:
        """The policy holds before the thing is there; where it does not come to be, what was before
        holds again. Gives the text that is kept."""
        policies = self.node.policies
        before = policies.find(resource=name)
        if allow is None:
            yield None
            return
        expression = read(allow)
        policies.set(Policy(name, None, expression))
        self.node.pin_named()
        try:
            yield text(expression)
        except BaseException:
            policies.remove(resource=name)
            if before is not None:
                policies.set(Policy(name, None, before))
            raise

    async def _keep(self, name: str, spec: Spec, policy: str | None, source: str) -> None:
        if self.persistent:
            node = self.node
            await node.store.call(
                Store.add_resource, node.name, self.kind, name, spec, source, policy
            )

    async def _discard(self, name: str, thing: T) -> None:
        """The creation failed: the thing goes, and whom it met meanwhile is forgotten."""
        await self.unmake(thing)
        if self.persistent:
            self.node.store.later(Store.remove_resource, self.node.name, self.kind, name)

    async def _restored(self, name: str, entry: Entry[T]) -> bool:
        try:
            entry.thing = await self.make(name, entry.spec)
        except EdgeError as error:
            if str(error) != entry.failure:
                log.error(
                    "%s %s cannot be restored: %s",
                    self.kind,
                    name,
                    error,
                    extra=event("resource-failed", error, kind=self.kind, resource=name),
                )
            entry.failure = str(error)
            return False
        entry.failure = None
        return True

    async def _retry(self, name: str, entry: Entry[T]) -> None:
        pause = FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
            async with self.node.changing:
                if self.entries.get(name) is not entry:
                    return
                if await self._restored(name, entry):
                    self.changed()
                    return
