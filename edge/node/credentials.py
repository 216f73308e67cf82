"""Credentials by hand: issued without an authority that runs, checked, and put into a node's cache."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge.errors import ConfigError, EdgeError, TrustError
from edge.identity.credential import Credential, issue
from edge.identity.history import ChangeHistory, Identifier
from edge.identity.keys import KeyKind, PublicKey
from edge.identity.known import Known
from edge.identity.purpose import attest_credential_key
from edge.keyring import Ask
from edge.node.home import Home
from edge.node.keys import Identity, check_held, opened, signer
from edge.node.store import CredentialRecord, NodeRecord, Store
from edge.node.trustcontext import of_settings, read_project


def issue_offline(
    issuer: Identity,
    home: Home,
    subject: ChangeHistory | Identifier,
    attributes: Mapping[str, str],
    *,
    now: int,
    lifetime: int,
    ask: Ask | None = None,
) -> Credential:
    """What `issuer` says of `subject`, for `lifetime` seconds. The key that signs it lives in memory,
    for this one credential: the identity key makes one signature, and vouches for nothing longer."""
    key = Ed25519PrivateKey.generate()
    public = PublicKey(KeyKind.ED25519, key.public_key().public_bytes_raw())
    with opened(issuer.uri, ask, home) as held:
        check_held(held, issuer)
        sign = signer(held, issuer.key)
        attestation = attest_credential_key(
            issuer.history, public, sign, now=now, lifetime=lifetime
        )
    given = {name.encode(): value.encode() for name, value in attributes.items()}
    return issue(subject, given, attestation, key.sign, now=now, lifetime=lifetime)


def known_here(store: Store) -> Known:
    """Every history that this home has: of its identities, its projects, its nodes' authorities and the
    peers that its nodes remember."""
    known = Known()
    for record in store.identities():
        _learn(known, ChangeHistory.decode(record.history))
    for project in map(read_project, store.projects()):
        _learn(known, project.authority)
        _learn(known, project.history)
    for node in store.nodes():
        context = of_settings(store, node.settings)
        if context is not None:
            _learn(known, context.authority)
    for history in store.peers():
        _learn(known, ChangeHistory.decode(history))
    return known


def _learn(known: Known, history: ChangeHistory) -> None:
    """Of two forms of one history the newer one stays."""
    history.verify()
    known.pinned.add(history.identifier)
    with suppress(TrustError):
        known.learn(history)


def check(store: Store, credential: Credential, issuer: Identifier, now: int) -> None:
    """Raises TrustError unless `issuer` says this of its subject now."""
    if credential.subject is None:
        raise TrustError("the credential says nothing of anybody")
    credential.verify(credential.subject, (issuer,), known_here(store), now)


def keep(store: Store, node: NodeRecord, credential: Credential, scope: str, now: int) -> None:
    """Put it into the cache of a node. Raises ConfigError where it is not of that node's identity,
    TrustError where it does not hold."""
    owner = store.identity(node.identity).identifier
    if str(credential.subject) != owner:
        raise ConfigError(
            f"the credential is of {credential.subject}, and node {node.name} is {owner}",
            hint="store it where its subject is; or issue one for this identity",
        )
    try:
        check(store, credential, credential.issuer, now)
    except EdgeError as error:
        error.hint = error.hint or (
            "its issuer must be known here: import its project, or give the node --authority-identity"
        )
        raise
    store.put_credential(
        CredentialRecord(
            owner, str(credential.issuer), scope, credential.encoded, credential.expires_at
        )
    )
