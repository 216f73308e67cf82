"""Runs scenarios over tokens: parametrises, keeps the environments, writes the results down."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.tokens import matrix
from tests.tokens.cells import Cell, cells
from tests.tokens.environments import Environment, Outage
from tests.tokens.holder import Holder
from tests.tokens.shim import Shim, build
from vault_backends.vault import Kind

HERE = Path(__file__).parent
RESULTS = pytest.StashKey[list[dict[str, Any]]]()
Hold = Callable[..., Holder]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tokens-results", help="write what came of each scenario to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("scenario")
    assert marker is not None, f"{metafunc.definition.nodeid} is no scenario"
    params = []
    varied = [name for name in ("outage_name", "variant") if name in metafunc.fixturenames]
    for cell in cells():
        slug = cell.environment.slug
        if marker.kwargs["only"] and slug not in marker.kwargs["only"]:
            continue
        chosen = {slug, str(cell)} & set(marker.kwargs["quick"])
        marks = [pytest.mark.quick] if chosen else []
        if why := marker.kwargs["cannot"].get(slug):
            marks.append(pytest.mark.skip(reason=f"cannot: {why}"))
        variants = marker.kwargs["variants"]
        if "outage_name" in metafunc.fixturenames:
            variants = cell.environment.outage_names
        if not varied:
            params.append(pytest.param(cell, marks=marks, id=str(cell)))
        for name in variants if varied else ():
            identity = f"{cell}-{name.replace(' ', '-')}"
            params.append(pytest.param(cell, name, marks=marks, id=identity))
    metafunc.parametrize(f"cell,{varied[0]}" if varied else "cell", params)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        marker = item.get_closest_marker("scenario")
        if marker is None or not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            item.add_marker(pytest.mark.quick)
        else:
            _describe(item, item.callspec.params, marker.kwargs["title"])
        item.add_marker(pytest.mark.tokens)


def _describe(item: pytest.Item, params: dict[str, Any], title: str) -> None:
    cell = params["cell"]
    name = params.get("outage_name") or params.get("variant")
    about, test = item.path.stem, item.name.partition("[")[0]
    scenario = f"{about}.{test}".replace("test_", "") + (f": {name}" if name else "")
    item.user_properties += [
        ("scenario", scenario),
        ("title", title + (f": {name}" if name else "")),
        ("environment", cell.environment.name),
        ("kind", str(cell.kind)),
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    said = dict(report.user_properties)
    if "scenario" in said and (report.when == "call" or report.outcome != "passed"):
        figures = {name[7:]: value for name, value in said.items() if name.startswith("figure ")}
        plain = {name: value for name, value in said.items() if not name.startswith("figure ")}
        result = plain | {"outcome": matrix.outcome(report), "figures": figures}
        item.config.stash[RESULTS].append(result)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("tokens_results", default=None)
    if path and session.config.stash[RESULTS]:
        matrix.write(Path(path), session.config.stash[RESULTS])


# --- tokens


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Environment]]:
    """One environment per class, made when it is first wanted."""
    made: dict[type[Environment], Environment] = {}
    with ExitStack() as stack:

        def get(wanted: type[Environment]) -> Environment:
            if why := wanted.missing():
                pytest.skip(why)
            if wanted not in made:
                folder = tmp_path_factory.mktemp(wanted.slug)
                made[wanted] = stack.enter_context(wanted(folder / "token"))
            return made[wanted]

        yield get


@pytest.fixture
def token(cell: Cell, environments: Callable[..., Environment]) -> Environment:
    """The token of this cell, shared with other tests: keys get labels of their own."""
    found = environments(cell.environment)
    found.clean()
    return found


@pytest.fixture
def fresh(cell: Cell, tmp_path: Path) -> Iterator[Environment]:
    """A token of this cell that no other test has seen."""
    if why := cell.environment.missing():
        pytest.skip(why)
    with cell.environment(tmp_path / "fresh") as made:
        yield made


@pytest.fixture
def kind(cell: Cell) -> Kind:
    return cell.kind


@pytest.fixture
def outage(token: Environment, outage_name: str) -> Outage:
    return token.outages[outage_name]


@pytest.fixture
def label(request: pytest.FixtureRequest) -> str:
    """A label that no other test has."""
    return "t" + format(abs(hash(request.node.nodeid)) % 10**12, "d")


@pytest.fixture(scope="session")
def shim_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def make_shim(shim_library: Path, tmp_path: Path) -> Callable[[Path], Shim]:
    def make(module: Path) -> Shim:
        return Shim(shim_library, tmp_path / "shim", module)

    return make


@pytest.fixture
def shim(token: Environment, make_shim: Callable[[Path], Shim]) -> Shim:
    """In front of the token's real module."""
    return make_shim(token.module)


@pytest.fixture
def hold(token: Environment) -> Iterator[Hold]:
    """Holders of this token, ended with the test. `uri` replaces that of the token, which `module`
    (a shim) and others of Environment.uri() change."""
    made: list[Holder] = []

    def make(
        uri: str | None = None,
        *,
        state_dir: Path | None = None,
        apart: bool = False,
        **given: Any,
    ) -> Holder:
        where = uri or token.uri(**given)
        more = {"state_dir": state_dir, "apart": apart, "prefix": token.prefix}
        made.append(Holder(where, token.variables, **more))
        return made[-1]

    yield make
    for holder in made:
        holder.end()
    token.clean()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Write a measured figure down; no test asserts one. Counts of the same name add up."""

    def write(name: str, value: Any) -> None:
        properties = dict(request.node.user_properties)
        before = properties.get(f"figure {name}", 0) if isinstance(value, int) else 0
        request.node.user_properties.append((f"figure {name}", before + value))

    return write
