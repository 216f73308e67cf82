"""{Our, their} authority x {our, their} enroller x {our, their} member, cell by cell, over our hub.

Both fleets live at once, so that what takes a credential's whole life is waited for once.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest

from tests.interop.fleets import CHECKS, KINDS, Fleet, matrix
from tests.interop.services import serving

# What lives comes first, what ends comes last.
CELLS = [(*who, what) for what in CHECKS for who in product(KINDS, repeat=3)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Fleet]]:
    with serving() as server:
        made = {kind: Fleet(kind, tmp_path_factory.mktemp(kind), server) for kind in KINDS}
        try:
            with ThreadPoolExecutor() as threads:
                list(threads.map(Fleet.start, made.values()))
            yield made
        finally:
            for fleet in made.values():
                fleet.end()
            print(matrix(list(made.values())))


@pytest.mark.parametrize(("authority", "enroller", "member", "what"), CELLS, ids=str)
def test_cell(
    fleets: dict[str, Fleet], authority: str, enroller: str, member: str, what: str
) -> None:
    if what == "expiry":
        for fleet in fleets.values():
            fleet.end_authority()
    fleets[authority].check(enroller, member, what)
