"""The matrix: which tokens there are, and how a test says that it is a scenario for them."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.tokens.environments import Environment, Nss, SoftHsm
from tests.tokens.tpm import ManagedTpm, Tpm
from vault_backends.vault import Kind

ALL: tuple[type[Environment], ...] = (SoftHsm, Tpm, ManagedTpm, Nss)
"""In the order of the matrix."""


class Cell(NamedTuple):
    environment: type[Environment]
    kind: Kind

    def __str__(self) -> str:
        return f"{self.environment.slug}-{self.kind}"


def scenario(
    title: str,
    *,
    quick: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    cannot: dict[str, str] | None = None,
) -> pytest.MarkDecorator:
    """Marks a test with the argument `cell` (and perhaps `outage`) as a scenario. `quick`: slugs of
    the environments in which `make test` runs it. `only`: the only environments that have such a thing.
    `cannot`: slug of an environment -> why it is left out there."""
    return pytest.mark.scenario(title=title, quick=quick, only=only, cannot=cannot or {})


def cells() -> list[Cell]:
    return [Cell(one, kind) for one in ALL for kind in sorted(one.kinds)]
