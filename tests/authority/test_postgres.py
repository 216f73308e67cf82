"""The registry in PostgreSQL: several processes over one database, a server that goes away, secrets."""

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import uvloop

from edge.authority import postgres
from edge.authority.migrations import MIGRATIONS
from edge.authority.postgres import PostgresRegistry
from edge.authority.registry import Change, Redemption, code_hash
from edge.errors import ConfigError, NetworkError, StateError
from edge.identity.history import Identifier
from tests.authority.conftest import AUTHORITY
from tests.authority.test_registry import ALICE, BOB, CODE, member, token
from tests.people import NOW, person
from tests.postgresql import PASSWORD, Server

OTHER = person("other authority").identifier


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 50))


@contextlib.asynccontextmanager
async def opened(source: str, authority: Identifier = AUTHORITY) -> Any:
    registry = await PostgresRegistry.open(source, authority)
    try:
        yield registry
    finally:
        await registry.close()


# -- several over one


def processes(
    count: int, program: str, *arguments: str, gone: Callable[[], None] = lambda: None
) -> list[str]:
    """What each of so many processes prints. Each says that it is ready; then all go, and `gone` is
    called."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(number), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate(timeout=50)
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        gone()
        ended = [process.communicate(timeout=50) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, ended
    return [out for out, _ in ended]


OPEN = """
import asyncio, sys
from edge.authority.postgres import PostgresRegistry
from edge.identity.history import Identifier

async def main():
    print("ready", flush=True)
    input()
    registry = await PostgresRegistry.open(sys.argv[2], Identifier(bytes(32)))
    await registry.close()

asyncio.run(main())
"""

REDEEM = """
import asyncio, sys
from edge.authority.postgres import PostgresRegistry
from edge.identity.history import Identifier

async def main():
    registry = await PostgresRegistry.open(sys.argv[2], Identifier(bytes.fromhex(sys.argv[3])))
    await asyncio.gather(*(registry.members() for _ in range(20)))  # its connections are there
    print("ready", flush=True)
    input()
    first = int(sys.argv[1]) * 250
    subjects = [Identifier(n.to_bytes(32, "big")) for n in range(first, first + 250)]
    code = bytes.fromhex(sys.argv[4])
    for redeemed in await asyncio.gather(*(registry.redeem(code, one, 1) for one in subjects)):
        print(redeemed.outcome.name)
    await registry.close()

asyncio.run(main())
"""


def test_processes_that_start_at_once(url: str) -> None:
    processes(4, OPEN, url)

    async def test() -> None:
        db = await asyncpg.connect(url)
        assert await db.fetchval("SELECT count(*) FROM ockam_edge.migration") == len(MIGRATIONS)
        await db.close()

    run(test)


def test_one_of_a_thousand_in_four_processes_wins(url: str) -> None:
    async def test() -> None:
        async with opened(url) as registry:
            await registry.add_token(token())
            db = await asyncpg.connect(url)
            loop = asyncio.get_running_loop()

            async def crowd() -> None:
                """Until more wait than one process has connections."""
                sql = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
                while await registry._run(lambda one: one.fetchval(sql)) <= postgres.CONNECTIONS:
                    await asyncio.sleep(0.01)
                await held.commit()

            def gone() -> None:
                asyncio.run_coroutine_threadsafe(crowd(), loop).result(20)

            held = db.transaction()
            await held.start()
            await db.execute("LOCK TABLE ockam_edge.member IN SHARE MODE")  # nobody joins yet
            given = (url, AUTHORITY.hex(), CODE.hex())
            said = await asyncio.to_thread(processes, 4, REDEEM, *given, gone=gone)
            await db.close()
            assert sorted("".join(said).split()) == ["JOINED"] + ["USED_UP"] * 999
            assert len(await registry.members()) == 1

    run(test)


def test_authorities_are_apart(url: str) -> None:
    async def test() -> None:
        async with opened(url) as ours, opened(url, OTHER) as theirs:
            await ours.put(member(ALICE, role="plc"))
            await ours.add_token(token())
            assert await theirs.members() == []
            assert (await theirs.redeem(CODE, BOB, NOW)).outcome is Redemption.UNKNOWN
            await theirs.add_token(token())  # the same code, by chance or malice
            await theirs.put(member(ALICE, role="rtu"))
            await theirs.pre_trust([], NOW)
            assert not await theirs.remove(BOB, NOW)
            assert await theirs.remove(ALICE, NOW)
            assert await ours.members() == [member(ALICE, role="plc")]
            assert await ours.latest_change() == 0
            assert (await ours.redeem(CODE, BOB, NOW)).outcome is Redemption.JOINED
            assert (await theirs.redeem(CODE, BOB, NOW)).outcome is Redemption.JOINED

    run(test)


def test_a_subject_spends_one_token(url: str) -> None:
    async def test() -> None:
        async with opened(url) as registry:
            codes = [code_hash(bytes([n])) for n in range(16)]
            for code in codes:
                await registry.add_token(token(code=code))
            asked = [registry.redeem(code, BOB, NOW) for code in codes]
            outcomes = [redeemed.outcome for redeemed in await asyncio.gather(*asked)]
            assert outcomes.count(Redemption.JOINED) == 1
            assert outcomes.count(Redemption.ALREADY_MEMBER) == 15
            spent = (
                f"SELECT count(*) FROM {postgres.SCHEMA}.token WHERE authority = $1 AND uses = 0"
            )
            assert (await registry._ask(spent))[0][0] == 1

    run(test)


def test_one_that_came_in_by_another_way_meanwhile_spends_nothing(url: str) -> None:
    async def test() -> None:
        async with opened(url) as registry:
            await registry.add_token(token())
            other = await asyncpg.connect(url)
            async with other.transaction():
                sql = "SELECT ockam_edge.put($1, $2, $3, $4, $5, false)"
                await other.execute(sql, AUTHORITY, BOB, b"\xa0", ALICE, NOW)
                redeeming = asyncio.create_task(registry.redeem(CODE, BOB, NOW))
                await asyncio.sleep(0.2)
                assert not redeeming.done()
            await other.close()
            assert (await redeeming).outcome is Redemption.ALREADY_MEMBER
            carol = person("carol").identifier
            assert (await registry.redeem(CODE, carol, NOW)).outcome is Redemption.JOINED

    run(test)


def test_who_sees_a_number_has_seen_all_below(url: str) -> None:
    async def test() -> None:
        async with opened(url) as registry:
            await registry.put(member(ALICE))
            await registry.put(member(BOB))
            slow = await asyncpg.connect(url)
            async with slow.transaction():
                await slow.execute("SELECT ockam_edge.remove($1, $2, $3)", AUTHORITY, ALICE, NOW)
                later = asyncio.create_task(registry.remove(BOB, NOW))
                joins = await registry.put(member(OTHER))  # joining waits for nobody
                assert joins is None
                await asyncio.sleep(0.2)
                assert not later.done(), "it would have a higher number, and be seen first"
                assert await registry.latest_change() == 0
            assert await later
            assert await registry.changes(0) == [
                Change(1, ALICE, True, NOW),
                Change(2, BOB, True, NOW),
            ]
            await slow.close()

    run(test)


def test_a_reader_misses_nothing(url: str) -> None:
    async def test() -> None:
        async with opened(url) as one, opened(url) as other:
            everybody = [Identifier(n.to_bytes(32, "big")) for n in range(20)]
            heard: dict[Identifier, Change] = {}

            async def write(registry: PostgresRegistry, step: int) -> None:
                for who in everybody[::step]:
                    await registry.put(member(who, by=str(step)))
                    await registry.remove(who, NOW)
                    await registry.put(member(who))

            async def read() -> None:
                number = 0
                while True:
                    for change in await one.changes(number):
                        assert change.number > number
                        number = change.number
                        heard[change.identifier] = change

            reading = asyncio.create_task(read())
            await asyncio.gather(write(one, 1), write(other, -1), write(other, 1))
            last = {change.identifier: change for change in await one.changes(0)}
            async with asyncio.timeout(10):
                while heard != last:
                    await asyncio.sleep(0.01)
            reading.cancel()
            assert len(await one.members()) == 20

    run(test)


# -- the server


def test_on_the_other_loop(url: str) -> None:
    async def test() -> None:
        async with opened(url) as registry:
            await registry.add_token(token())
            assert (await registry.redeem(CODE, BOB, NOW)).outcome is Redemption.JOINED

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test(), 50))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_server_that_goes_away_and_comes_back(server: Server, url: str, how: Any) -> None:
    async def test() -> None:
        async with opened(url) as registry:
            await registry.add_token(token())
            await asyncio.gather(*(registry.members() for _ in range(20)))
            await asyncio.to_thread(server.stop, how)
            try:
                asked = (
                    registry.members(),
                    registry.redeem(CODE, BOB, NOW),
                    registry.put(member()),
                )
                for outcome in await asyncio.gather(*asked, return_exceptions=True):
                    assert isinstance(outcome, NetworkError)
                    assert outcome.hint
            finally:
                await asyncio.to_thread(server.start)
            assert (await registry.redeem(CODE, BOB, NOW)).outcome is Redemption.JOINED
            assert [one.identifier for one in await registry.members()] == [BOB]

    run(test)


def test_a_server_that_comes_up_as_we_do(server: Server, url: str) -> None:
    async def test() -> None:
        await asyncio.to_thread(server.stop)
        opening = asyncio.create_task(PostgresRegistry.open(url, AUTHORITY))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.start)
        registry = await opening
        assert await registry.members() == []
        await registry.close()

    run(test)


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "START", 0.2)

    async def test() -> None:
        for url in (f"postgresql://u@/x?host={tmp_path}", "postgresql://u@127.0.0.1:1/x"):
            with pytest.raises(NetworkError, match="the authority's database x at") as caught:
                await PostgresRegistry.open(url, AUTHORITY)
            assert "running" in caught.value.hint

    run(test)


def test_no_answer_is_waited_for_without_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "STATEMENT", 0.3)
    monkeypatch.setattr(postgres, "PATIENCE", 0.6)

    async def test() -> None:
        async with opened(url) as registry:
            await registry.add_token(token())
            other = await asyncpg.connect(url)
            async with other.transaction():
                await other.execute("LOCK TABLE ockam_edge.token")
                subjects = [Identifier(n.to_bytes(32, "big")) for n in range(40)]
                asked = [registry.redeem(CODE, subject, NOW) for subject in subjects]
                for outcome in await asyncio.gather(*asked, return_exceptions=True):
                    assert isinstance(outcome, NetworkError)
            await other.close()
            assert await registry.members() == [], "none of them happened later"
            assert (await registry.redeem(CODE, BOB, NOW)).outcome is Redemption.JOINED

    run(test)


def test_closed(url: str) -> None:
    async def test() -> None:
        registry = await PostgresRegistry.open(url, AUTHORITY)
        await registry.close()
        await registry.close()
        with pytest.raises(NetworkError, match="closed"):
            await registry.members()

    run(test)


def test_a_newer_database(url: str) -> None:
    async def test() -> None:
        async with opened(url) as registry:
            await registry._run(
                lambda db: db.execute("INSERT INTO ockam_edge.migration VALUES (99, now())")
            )
        with pytest.raises(ConfigError, match="version 99"):
            await PostgresRegistry.open(url, AUTHORITY)

    run(test)


def test_what_the_operator_must_do(server: Server) -> None:
    async def test() -> None:
        name = server.database()
        with pytest.raises(ConfigError, match="does not exist") as caught:
            await PostgresRegistry.open(server.url("nowhere"), AUTHORITY)
        assert "createdb" in caught.value.hint
        server.sql("CREATE ROLE guest LOGIN")
        with pytest.raises(ConfigError, match="permission denied") as caught:
            await PostgresRegistry.open(server.url(name).replace("fleet@", "guest@"), AUTHORITY)
        assert "right to create" in caught.value.hint
        async with opened(server.url(name)):
            server.sql("DROP FUNCTION ockam_edge.remove CASCADE", name)
        async with opened(server.url(name)) as registry:
            with pytest.raises(ConfigError) as caught:
                await registry.remove(ALICE, NOW)
            assert "by hand" in caught.value.hint

    run(test)


def test_a_standby_is_left(url: str) -> None:
    async def test() -> None:
        async with opened(url) as registry:
            await registry.put(member(ALICE))
            await registry._run(
                lambda db: db.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
            )
            with pytest.raises(NetworkError, match="read-only"):
                await registry.put(member(BOB))
            await registry.put(member(BOB))  # over a connection of its own

    run(test)


def test_a_bug_is_no_trouble_of_the_server(url: str) -> None:
    async def test() -> None:
        async with opened(url) as registry:
            await registry.add_token(token())
            with pytest.raises(StateError, match="duplicate key"):
                await registry.add_token(token())

    run(test)


def test_what_another_transaction_undid_is_tried_again(url: str) -> None:
    async def test() -> None:
        async with opened(url) as registry:
            failures = [asyncpg.DeadlockDetectedError("deadlock detected")]

            async def work(db: Any) -> int:
                if failures:
                    raise failures.pop()
                return int(await db.fetchval("SELECT 7"))

            assert await registry._run(work) == 7
            failures += [asyncpg.DeadlockDetectedError("deadlock detected")] * 9
            with pytest.raises(NetworkError, match="deadlock"):
                await registry._run(work)
            assert len(failures) == 9 - postgres.TRIES

    run(test)


# -- secrets


def test_a_password_is_nowhere(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    name, path = server.database(), tmp_path / "url"
    source = f"file:{path}"

    def write(password: str) -> None:
        path.write_text(server.tcp_url(name, password))
        path.chmod(0o600)

    async def test() -> None:
        write("wr0ng-one")
        with pytest.raises(ConfigError, match="password authentication failed") as caught:
            await PostgresRegistry.open(source, AUTHORITY)
        assert "wr0ng-one" not in "".join(map(str, _chain(caught.value)))
        write(PASSWORD)
        async with opened(source) as registry:
            assert await registry.members() == []
            assert PASSWORD not in repr(vars(registry)) + caplog.text
            # Changed at the server, then in the file: no restart is needed.
            server.sql("CREATE ROLE two LOGIN PASSWORD 'n3w'; GRANT fleet TO two")
            await registry._pool.expire_connections()
            path.write_text(server.tcp_url(name, "n3w").replace("//fleet:", "//two:"))
            assert await registry.members() == []
            path.write_text("postgresql://fleet:wr0ng-one@[")
            await registry._pool.expire_connections()
            with pytest.raises(ConfigError, match="cannot be read"):
                await registry.members()
        with pytest.raises(ConfigError, match="password in it"):
            await PostgresRegistry.open(server.tcp_url(name), AUTHORITY)

    run(test)
    assert "wr0ng-one" not in caplog.text


def _chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def test_no_code_is_in_the_database(url: str) -> None:
    async def test() -> None:
        code = bytes(range(32))
        async with opened(url) as registry:
            await registry.add_token(token(code=code_hash(code)))
            rows = await registry._ask(
                f"SELECT * FROM {postgres.SCHEMA}.token WHERE authority = $1"
            )
            assert code_hash(code) in rows[0].values()
            assert code not in rows[0].values()

    run(test)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgresql://u@127.0.0.1/x", "as the URL says"),
        ("postgresql:///x?host=/run/pg", "as the URL says"),
        ("postgresql://u@db/x?sslmode=require", "as the URL says"),
        ("postgresql://u@db/x?sslrootcert=/x.pem", "verify-full"),
        ("postgresql://u@db/x", "verified"),
        ("postgresql://u@localhost,db/x", "verified"),
        ("postgresql:///x?service=fleet", "verified"),
    ],
)
def test_another_machine_is_verified(
    url: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGSSLMODE", raising=False)
    monkeypatch.delenv("PGHOST", raising=False)
    found = postgres._tls(url)
    if wanted == "verified":
        assert found is not None
        assert not isinstance(found, str)
        assert found.check_hostname
    else:
        assert (found or "as the URL says") == wanted
