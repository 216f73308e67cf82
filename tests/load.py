"""The test vectors of the protocol documents."""

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "vectors"


@cache
def vectors(name: str) -> Any:
    """The content of `vectors/<name>.json`; shared, so not to be changed."""
    return json.loads((FOLDER / f"{name}.json").read_text())
