"""The matrix: which tokens there are, and how a test says that it is a scenario for them."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.tokens.environments import Environment, Nss, SoftHsm
from tests.tokens.tpm import ManagedTpm, Tpm
from tests.tokens.trixie import Tpm13
from tests.tokens.yubihsm.environment import YubiHsm
from vault_backends.vault import Kind

ALL: tuple[type[Environment], ...] = (SoftHsm, Tpm, ManagedTpm, Tpm13, YubiHsm, Nss)
"""In the order of the matrix."""


class Cell(NamedTuple):
    environment: type[Environment]
    kind: Kind

    def __str__(self) -> str:
        return f"{self.environment.slug}-{self.kind}"


def scenario(
    title: str,
    *,
    variants: tuple[str, ...] = (),
    quick: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    cannot: dict[str, str] | None = None,
) -> pytest.MarkDecorator:
    """Marks a test with the argument `cell` as a scenario; with the argument `outage` it is one for
    each way in which the token can go away, with `variant` one for each of `variants`. `quick`: slugs
    of the environments, or cells, in which `make test` runs it. `only`: the only ones that have such
    a thing. `cannot`: slug of an environment -> why it is left out there."""
    return pytest.mark.scenario(
        title=title, variants=variants, quick=quick, only=only, cannot=cannot or {}
    )


def cells() -> list[Cell]:
    return [Cell(one, kind) for one in ALL for kind in sorted(one.kinds)]
