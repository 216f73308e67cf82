"""Configuration: makes a running node what a file wants, and touches nothing that is so already.

Compared is only what came from a file; what a command made stays, unless the file wants that name. A
tunnel that did not change is not dropped.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from edge.errors import ConfigError, EdgeError
from edge.node.fields import Fields
from edge.node.policies import Policy, check_type, read
from edge.node.shelf import Entry, Shelf, Spec
from edge.node.store import GUARDED, ResourceRecord, Store
from edge.policy.values import Expr, text

if TYPE_CHECKING:
    from edge.node.node import Node

FILE = "file"
WAITED_FOR = ("relay", "tcp-inlet")
KINDS = ("service", "secure-channel-listener", "relay", "tcp-outlet", "tcp-inlet")
OPEN_LISTENER = ("secure-channel-listener", "api")
"""Every node has it; a file may restrict it."""
Key = tuple[str, str]


class Item(NamedTuple):
    """Something that a file wants; `spec` is what is kept of `body`, without its policy."""

    shelf: Shelf[Any]
    name: str
    body: dict[str, Any]
    spec: Spec

    @property
    def key(self) -> Key:
        return self.shelf.kind, self.name


class Wanted(NamedTuple):
    """All that a file wants; policies by resource and type, of which one is empty."""

    items: list[Item]
    policies: dict[Key, Expr]


class Configuration:
    """Of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._applying = asyncio.Lock()

    async def apply(self, body: object) -> list[Spec]:
        """What was added, changed, removed or failed, each with its kind and name. Raises ConfigError
        where the request itself is wrong; then nothing has changed."""
        async with self._applying:
            wanted = self._checked(body)
            node = self._node
            resources = await node.store.call(Store.resources, node.name)
            there = {(record.kind, record.name): record for record in resources}
            changes = await self._remove(wanted, there)
            changes += await self._set_policies(wanted)
            made = [await self._make(item, wanted, there.get(item.key)) for item in wanted.items]
            changes += await asyncio.gather(*(step.settled() for step in made))
            changes += await self._drop_policies(wanted)
            return [change for change in changes if change is not None]

    # -- what is wanted

    def _checked(self, body: object) -> Wanted:
        """Raises ConfigError."""
        fields = Fields(body, ("resources", "policies"))
        shelves = {shelf.kind: shelf for shelf in self._node.shelves if shelf.kind in KINDS}
        items: list[Item] = []
        policies: dict[Key, Expr] = {}
        for one in fields.maps("policies"):
            policy = Fields(one, ("resource", "type", "expression"))
            resource, kind = policy.optional_text("resource"), policy.optional_text("type")
            if (resource is None) == (kind is None):
                raise ConfigError("a policy is of a resource or of a type")
            key = (resource or "", check_type(kind) if kind else "")
            policies[key] = read(policy.text("expression"))
        for one in fields.maps("resources"):
            resource_fields = Fields(one, ("kind", "body"))
            shelf = shelves.get(resource_fields.text("kind"))
            if shelf is None:
                raise ConfigError(f"{one['kind'][:40]!r} is no kind of resource for a file")
            given = one.get("body")
            name, spec = shelf.checked(given)
            allow = spec.pop("allow", None)
            if allow is not None:
                policies[name, ""] = read(allow)
            items.append(Item(shelf, name, {**given, shelf.key: name}, spec))
        return Wanted(items, policies)

    # -- the steps

    async def _remove(self, wanted: Wanted, there: dict[Key, ResourceRecord]) -> list[Spec | None]:
        shelves = {shelf.kind: shelf for shelf in self._node.shelves}
        keys = {item.key for item in wanted.items}
        gone = [key for key, one in there.items() if one.source == FILE and key not in keys]
        for kind, name in gone:
            await shelves[kind].delete(name)
            if (kind, name) == OPEN_LISTENER:
                await _open_listener(shelves[kind])
        return [_change("removed", kind, name) for kind, name in gone]

    async def _set_policies(self, wanted: Wanted) -> list[Spec | None]:
        node = self._node
        there = await node.store.call(Store.policy_sources, node.name)
        new = {item.name for item in wanted.items if item.name not in item.shelf.entries}
        changes: list[Spec | None] = []
        for (resource, kind), expression in wanted.policies.items():
            if there.get((resource, kind)) != (text(expression), FILE):
                policy = Policy(resource or None, kind or None, expression)
                await node.set_policy(policy, source=FILE)
                if resource not in new:
                    what = "changed" if (resource, kind) in there else "added"
                    changes.append(_change(what, "policy", resource or kind))
        return changes

    async def _drop_policies(self, wanted: Wanted) -> list[Spec | None]:
        """Last: what they were of may be gone by now, or open only now."""
        node = self._node
        there = await node.store.call(Store.policy_sources, node.name)
        changes: list[Spec | None] = []
        for (resource, kind), (_, source) in there.items():
            if source == FILE and (resource, kind) not in wanted.policies:
                name = resource or kind
                try:
                    await node.remove_policy(resource=resource or None, kind=kind or None)
                    changes.append(_change("removed", "policy", name))
                except EdgeError as error:
                    changes.append(_change("failed", "policy", name, error))
        return changes

    async def _make(self, item: Item, wanted: Wanted, record: ResourceRecord | None) -> Step:
        entry = item.shelf.entries.get(item.name)
        allow = wanted.policies.get((item.name, ""))
        step = Step(item, record, None if allow is None else text(allow))
        if entry is None or not item.shelf.same(entry.spec, item.spec):
            await step.make()
        elif record is not None and record.source != FILE:
            await self._node.store.call(Store.own_resource, self._node.name, *item.key, FILE)
        return step


class Step:
    """One item that is made, in the place of what is there. Where it cannot be made, that stays."""

    def __init__(self, item: Item, before: ResourceRecord | None, allow: str | None) -> None:
        self._item, self._before, self._allow = item, before, allow
        self._change: Spec | None = None
        self._entry: Entry[Any] | None = None

    async def make(self) -> None:
        shelf, name = self._item.shelf, self._item.name
        old = name in shelf.entries
        if old:
            await shelf.delete(name)
        self._change = _change("changed" if old else "added", *self._item.key)
        try:
            await shelf.create(self._asked(self._item.body), source=FILE)
        except EdgeError as error:
            await self._put_back(error)
        else:
            self._entry = shelf.entries[name]

    async def settled(self) -> Spec | None:
        """Wait for what the file wants to be waited for; what is hopeless goes again. None where there
        was nothing to do."""
        change, entry, item = self._change, self._entry, self._item
        if change is None or entry is None:
            return change
        try:
            await item.shelf.settle(item.name, entry, item.body)
        except EdgeError as error:
            if item.shelf.entries.get(item.name) is entry:
                await item.shelf.delete(item.name)
            await self._put_back(error)
            return self._change
        shown = item.shelf.status(item.name, entry)
        state = shown.get("connection_status", shown.get("status"))
        return change | {"state": state, "reason": shown.get("last_failure")}

    def _asked(self, body: dict[str, Any]) -> dict[str, Any]:
        """With its policy, and without waiting: that comes when all are made."""
        body = dict(body)
        if self._item.shelf.kind in GUARDED:
            body["allow"] = self._allow
        if self._item.shelf.kind in WAITED_FOR:
            body["wait"] = False
        return body

    async def _put_back(self, error: EdgeError) -> None:
        """The policy stays that of the file: it never opens more than is wanted."""
        self._change = _change("failed", *self._item.key, error)
        self._entry = None
        before, shelf = self._before, self._item.shelf
        try:
            if before is not None:
                body = {**before.spec, shelf.key: before.name}
                await shelf.create(self._asked(body), source=before.source)
            elif self._item.key == OPEN_LISTENER:
                await _open_listener(shelf)
        except EdgeError as again:
            more = f"and what was there before cannot be made again: {again}"
            self._change = _change("failed", *self._item.key, error, more)


async def _open_listener(shelf: Shelf[Any]) -> None:
    """As every node has it."""
    shelf.entries[OPEN_LISTENER[1]] = Entry({"authorized": []})
    await shelf.restore()


def _change(
    what: str, kind: str, name: str, error: EdgeError | None = None, more: str = ""
) -> Spec:
    change: Spec = {"what": what, "kind": kind, "name": name}
    if error is not None:
        change |= {"error": f"{error}; {more}" if more else str(error), "hint": error.hint}
    return change
