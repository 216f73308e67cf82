"""The start of the other process, by the path of this file and in isolated mode (`python -I`).

Isolated, Python looks neither at the environment nor into the current directory, so that nobody puts
code into the process that holds the PIN. It would not find this package in a checkout either; it is
the one that this very file belongs to.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def _find_package() -> None:
    if "vault_backends" in sys.modules:  # python -m vault_backends.apart
        return
    first = Path(__file__).resolve().parents[1] / "__init__.py"
    spec = spec_from_file_location(
        "vault_backends", first, submodule_search_locations=[str(first.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["vault_backends"] = package = module_from_spec(spec)
    spec.loader.exec_module(package)


if __name__ == "__main__":
    _find_package()
    from vault_backends.apart.child import main

    main(sys.argv[1:])
