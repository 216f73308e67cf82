"""A vault in a process of its own: what crashes, hangs or lies there costs one call. The conformance
suite runs through it too, as `softhsm-apart`."""

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vault.conftest import PIN, ROOT
from vault_backends.apart.complaints import LINES, Complaints, last_words
from vault_backends.apart.log import Log
from vault_backends.apart.messages import LONGEST, Broken, Conversation, Ended, Late
from vault_backends.apart.process import Process
from vault_backends.apart.vault import STARTS, ApartVault
from vault_backends.pkcs11.vault import Pkcs11Vault
from vault_backends.uri import parse
from vault_backends.vault import (
    DeviceGone,
    Key,
    Kind,
    Locked,
    Misconfigured,
    NotFound,
    Refused,
    Seals,
    Token,
    VaultError,
)

KEY = Key(Kind.ED25519, "main")
SOON = 10.0


@pytest.fixture
def vaults(soft_token, tmp_path) -> Iterator[Callable[..., ApartVault]]:
    made: list[ApartVault] = []

    def make(query: str = "", **more: object) -> ApartVault:
        more.setdefault("state_dir", tmp_path / "state")
        made.append(ApartVault(soft_token.uri(query=query), **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for vault in made:
        process = vault.process
        if process is not None and process.alive():
            os.kill(process.pid, signal.SIGCONT)
        vault.close()
        assert process is None or not process.alive()


@pytest.fixture
def vault(vaults) -> ApartVault:
    made = vaults()
    made.generate(KEY.kind, KEY.label)
    return made


def pid_of(vault: ApartVault) -> int:
    assert vault.process is not None
    return vault.process.pid


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def eventually(true: Callable[[], object]) -> None:
    until = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def in_mid_call(vault: ApartVault) -> Iterator[Future[bytes]]:
    """The process has stopped, and a signature is being waited for."""
    os.kill(pid_of(vault), signal.SIGSTOP)
    assert vault.process is not None
    before = vault.process.calls
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(vault.sign, KEY, b"x")
        eventually(lambda: vault.process is None or vault.process.calls > before)
        yield future


def test_powers(vault) -> None:
    assert isinstance(vault, Token)
    assert isinstance(vault, Seals)
    vault.probe()
    assert vault.state().present
    assert vault.state().label == "edge"
    assert vault.logins == 1
    vault.reopen()
    assert vault.logins == 2


def test_what_the_vault_says_arrives_whole(vault, soft_token) -> None:
    with pytest.raises(NotFound, match="no-such") as caught:
        vault.public(Key(Kind.P256, "no-such"))
    inside = Pkcs11Vault(parse(soft_token.uri()))
    with pytest.raises(NotFound) as plain:
        inside.public(Key(Kind.P256, "no-such"))
    inside.close()
    assert (str(caught.value), caught.value.hint) == (str(plain.value), plain.value.hint)
    assert caught.value.retry is plain.value.retry


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_killed_in_mid_call(vault, number) -> None:
    first = pid_of(vault)
    with in_mid_call(vault) as future:
        os.kill(first, number)
        os.kill(first, signal.SIGCONT)
        with pytest.raises(DeviceGone, match=number.name) as caught:
            future.result(SOON)
    assert caught.value.retry
    assert vault.sign(KEY, b"x")
    assert pid_of(vault) != first
    assert vault.logins == 2


def test_killed_between_calls(vault) -> None:
    os.kill(pid_of(vault), signal.SIGKILL)
    eventually(lambda: gone(pid_of(vault)))
    assert vault.sign(KEY, b"x")


@pytest.mark.parametrize("where", ["socket.socketpair", "os.pipe", "subprocess.Popen"])
def test_no_descriptor_is_left_to_start_it(vault, monkeypatch, where) -> None:
    """The watch and the renewal catch no OSError, and would end by it."""

    def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    os.kill(pid_of(vault), signal.SIGKILL)
    eventually(lambda: gone(pid_of(vault)))
    with monkeypatch.context() as patched:
        patched.setattr(f"vault_backends.apart.process.{where}", none_left)
        with pytest.raises(Misconfigured, match="Too many open files"):
            vault.sign(KEY, b"x")
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(Misconfigured):
            Process()
        assert len(os.listdir("/proc/self/fd")) == before
    assert vault.sign(KEY, b"x")


def test_a_hang_has_an_end(vaults, vault) -> None:
    short = vaults(limits={"sign": 0.3})
    short.public(KEY)
    first = pid_of(short)
    with in_mid_call(short) as future, pytest.raises(DeviceGone, match="stuck"):
        future.result(SOON)
    assert gone(first)  # stopped, it does not even feel SIGTERM
    assert short.sign(KEY, b"x")


def test_nobody_left_to_end_a_hang(tmp_path) -> None:
    code = """
import ctypes, time
from vault_backends.apart import child
child.PATIENCE = 0.2
with child._Watchdog(0.1):
    ctypes.PyDLL(None).sleep(60)  # holds the GIL
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=SOON, check=False)
    assert done.returncode == 1


def test_sigterm_means_in_order(vault) -> None:
    process = vault.process
    os.kill(process.pid, signal.SIGTERM)
    assert process._process.wait(SOON) == 0
    assert vault.sign(KEY, b"x")


def test_a_terminal_does_not_end_it(vault) -> None:
    first = pid_of(vault)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(first, number)
    assert vault.sign(KEY, b"x")
    assert pid_of(vault) == first


def test_nothing_for_others_to_see(vault, soft_token) -> None:
    pid = pid_of(vault)
    limits = Path(f"/proc/{pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core"))
    assert core.split()[4:6] == ["0", "0"]
    for file in ("cmdline", "environ"):
        seen = Path(f"/proc/{pid}/{file}").read_bytes()
        assert PIN.encode() not in seen
        assert str(soft_token.pin_file).encode() not in seen
    assert len(os.listdir(f"/proc/{pid}/fd")) <= 6  # 0 to 2, socket, pipe, what the module opens


def test_it_is_not_dumpable() -> None:
    code = """
import ctypes
from vault_backends.nocore import keep_no_core
keep_no_core()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_no_code_from_where_it_is_started(vaults, tmp_path, monkeypatch) -> None:
    for name in ("json", "pkcs11", "vault_backends"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    vaults().probe()


PARENT = """
import sys, time
from vault_backends import open_vault
vault = open_vault(sys.argv[1], apart=True)
vault.probe()
print(vault.process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_node_is_killed(soft_token, number) -> None:
    command = [sys.executable, "-c", PARENT, soft_token.uri()]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.send_signal(number)
    eventually(lambda: gone(pid))


def test_closed_it_has_ended(vault) -> None:
    pid = pid_of(vault)
    vault.close()
    vault.close()
    assert gone(pid)
    with pytest.raises(VaultError, match="closed"):
        vault.probe()


def test_what_does_not_open_leaves_nothing(soft_token, tmp_path, monkeypatch) -> None:
    started: list[ApartVault] = []
    plain = ApartVault._started

    def spy(self):
        started.append(self)
        return plain(self)

    monkeypatch.setattr(ApartVault, "_started", spy)
    with pytest.raises(NotFound, match="no PKCS#11 module"):
        ApartVault("pkcs11:token=edge?module-path=/usr/lib/no-such.so", state_dir=tmp_path)
    assert len(started) == 1
    assert started[0].process is None


def test_starts_are_counted_out(vaults) -> None:
    now = 1000.0
    vault = vaults(clock=lambda: now)
    for _ in range(STARTS - 1):
        os.kill(pid_of(vault), signal.SIGKILL)
        eventually(lambda: gone(pid_of(vault)))
        vault.probe()
    os.kill(pid_of(vault), signal.SIGKILL)
    eventually(lambda: gone(pid_of(vault)))
    for _ in range(5):
        with pytest.raises(DeviceGone, match="in a row"):
            vault.probe()
    assert vault.starts == STARTS
    now += 10
    vault.probe()
    assert vault.starts == STARTS + 1


def test_a_device_that_stays_away_gets_a_fresh_process(vault, soft_token) -> None:
    away = soft_token.folder / "away"
    here = soft_token.files
    here.rename(away)
    pids = []
    for _ in range(4):
        with pytest.raises(DeviceGone):
            vault.probe()
        pids.append(pid_of(vault))
    assert pids[0] == pids[1] != pids[2]
    away.rename(here)
    vault.probe()
    assert vault.sign(KEY, b"x")
    assert vault.logins == 2


# --- the PIN


def test_a_wrong_pin_is_tried_once_whatever_ends(vaults, soft_token) -> None:
    soft_token.pin_file.write_text("999999\n")
    vault = vaults()
    with pytest.raises(Locked, match="refused"):
        list(vault.keys())
    assert vault.logins == 1
    os.kill(pid_of(vault), signal.SIGKILL)
    eventually(lambda: gone(pid_of(vault)))
    for _ in range(3):
        with pytest.raises(Locked, match="not tried again"):
            list(vault.keys())
    assert vault.logins == 1


def test_so_it_is_without_a_folder_to_remember_it_in(vaults, soft_token) -> None:
    soft_token.pin_file.write_text("999999\n")
    vault = vaults(state_dir=None)
    with pytest.raises(Locked):
        list(vault.keys())
    os.kill(pid_of(vault), signal.SIGKILL)
    eventually(lambda: gone(pid_of(vault)))
    with pytest.raises(Locked, match="not tried again"):
        list(vault.keys())
    assert vault.logins == 1


def test_a_person_is_asked_here(vaults) -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return PIN

    vault = vaults("&pin-source=ask", ask=ask)
    assert list(vault.keys()) == []
    assert len(asked) == 1
    assert "PIN" in asked[0]
    assert "edge" in asked[0]


def test_a_person_who_leaves(vaults) -> None:
    def ask(prompt: str) -> str:
        raise KeyboardInterrupt

    vault = vaults("&pin-source=ask", ask=ask)
    pid = pid_of(vault)
    with pytest.raises(KeyboardInterrupt):
        list(vault.keys())
    assert gone(pid)
    vault.probe()


def test_the_time_of_a_person_does_not_count(vaults) -> None:
    vault = vaults("&pin-source=ask", ask=lambda prompt: time.sleep(1) or PIN, limits={"keys": 0.9})
    assert list(vault.keys()) == []


# --- the key


def test_an_exchanged_key_is_noticed_by_the_next_process(vault, soft_token) -> None:
    vault.sign(KEY, b"x")
    other = Pkcs11Vault(parse(soft_token.uri()))
    other.delete(KEY)
    other.generate(KEY.kind, KEY.label)
    other.close()
    os.kill(pid_of(vault), signal.SIGKILL)
    eventually(lambda: gone(pid_of(vault)))
    with pytest.raises(Refused, match="does not verify"):
        vault.sign(KEY, b"x")
    with pytest.raises(Refused, match="another key"):
        vault.public(KEY)


def test_a_pin_is_told_to_the_next_process_too(vault, soft_token) -> None:
    public = vault.public(KEY)
    vault.pin(KEY, public, vault.seen.serial)
    os.kill(pid_of(vault), signal.SIGKILL)
    eventually(lambda: gone(pid_of(vault)))
    assert vault.sign(KEY, b"x")
    vault.pin(KEY, public, "0badc0de")
    os.kill(pid_of(vault), signal.SIGKILL)
    eventually(lambda: gone(pid_of(vault)))
    logins = vault.logins
    with pytest.raises(VaultError, match="serial"):
        vault.sign(KEY, b"x")
    assert vault.logins == logins


def test_a_signature_of_something_else_is_refused(vault, monkeypatch) -> None:
    ask = type(vault.process).ask

    def other(self, call, given, *rest):
        return ask(self, call, [*given[:2], b"other"] if call == "sign" else given, *rest)

    monkeypatch.setattr(type(vault.process), "ask", other)
    for act in (lambda: vault.public(KEY), lambda: vault.sign(KEY, b"x")):
        with pytest.raises(Refused, match="does not verify"):
            act()


def test_two_threads_take_turns(vault) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda n: vault.sign(KEY, bytes([n])), range(40)))
    assert len(set(made)) == 40


# --- messages


def pair() -> tuple[Conversation, socket.socket]:
    ours, theirs = socket.socketpair()
    return Conversation(ours), theirs


VALUES = [
    None,
    True,
    0,
    -1,
    2**70,
    "text",
    b"",
    bytes(range(256)),
    ["a", [b"x"]],
    {"key": b"value"},
]


@pytest.mark.parametrize("value", VALUES)
def test_messages_arrive(value) -> None:
    ours, theirs = pair()
    ours.send(value)
    assert Conversation(theirs).receive() == value
    ours.close()
    with pytest.raises(Ended):
        Conversation(theirs).receive()
    with pytest.raises(Ended):
        Conversation(theirs).send(value)
    theirs.close()


ROGUE = [
    struct.pack(">I", LONGEST + 1),
    b"\xff\xff\xff\xff",
    struct.pack(">I", 1) + b"{",
    struct.pack(">I", 0),
    struct.pack(">I", 3) + b"\xff\xfe\xfd",
    struct.pack(">I", 3) + b"1.5",
    struct.pack(">I", 3) + b"NaN",
    struct.pack(">I", 12) + b'{"hex":"zz"}',
    struct.pack(">I", 100_000) + b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("data", ROGUE, ids=range(len(ROGUE)))
def test_what_is_no_message(data) -> None:
    ours, theirs = pair()
    with theirs:
        threading.Thread(target=theirs.sendall, args=(data,)).start()
        with pytest.raises(Broken):
            ours.receive(time.monotonic() + SOON)
    ours.close()


def test_half_a_message() -> None:
    ours, theirs = pair()
    theirs.sendall(struct.pack(">I", 10) + b"12345")
    with pytest.raises(Late):
        ours.receive(time.monotonic() + 0.1)
    theirs.close()
    with pytest.raises(Ended):
        ours.receive()
    ours.close()


def test_nobody_reads() -> None:
    ours, theirs = pair()
    with pytest.raises(Late):
        ours.send(bytes(LONGEST // 3), time.monotonic() + 0.1)
    theirs.close()
    ours.close()


def test_too_much_is_refused_and_nothing_is_lost(vault) -> None:
    pid = pid_of(vault)
    with pytest.raises(Refused, match="too many"):
        vault.sign(KEY, bytes(LONGEST))
    assert vault.sign(KEY, bytes(100_000))
    assert pid_of(vault) == pid


@pytest.mark.parametrize(
    "said",
    [
        ROGUE[0],
        ROGUE[2],
        struct.pack(">I", 4) + b"null",
        struct.pack(">I", 2) + b"{}",
        struct.pack(">I", 15) + b'{"gives":"text"',
        struct.pack(">I", 16) + b'{"gives":"text"}',
        struct.pack(">I", 11) + b'{"error":1}',
    ],
)
def test_a_process_out_of_its_mind(vault, said) -> None:
    ours, theirs = socket.socketpair()
    vault.process._conversation.sock.close()
    vault.process._conversation.sock = ours
    with theirs:
        theirs.sendall(said)
        with pytest.raises(DeviceGone):
            vault.public(KEY)
    assert vault.sign(KEY, b"x")


def framed(text: str) -> bytes:
    return struct.pack(">I", len(text)) + text.encode()


@contextmanager
def rogue(vault: ApartVault) -> Iterator[socket.socket]:
    """The other end of the conversation is ours."""
    assert vault.process is not None
    ours, theirs = socket.socketpair()
    vault.process._conversation.sock.close()
    vault.process._conversation.sock = ours
    with theirs:
        yield theirs


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda vault: vault.public(KEY), '{"gives":{"hex":5}}'),
        (lambda vault: vault.public(KEY), '{"gives":{"hex":["00"]}}'),
        (lambda vault: list(vault.keys()), '{"gives":[["no kind","x"]]}'),
        (lambda vault: list(vault.keys()), '{"gives":[5]}'),
        (lambda vault: list(vault.keys()), '{"gives":[["ed25519",{"a":1}]]}'),
        (lambda vault: vault.kinds, '{"gives":["no kind"]}'),
        (lambda vault: vault.kinds, '{"gives":[[]]}'),
        (lambda vault: vault.state(), '{"gives":5}'),
    ],
)
def test_answers_of_the_wrong_shape_cost_their_process(vault, call, said) -> None:
    """Whatever it says, the node meets no other error than that the device is gone."""
    with rogue(vault) as theirs:
        theirs.sendall(framed(said))
        with pytest.raises(DeviceGone, match="out of its mind"):
            call(vault)
    assert vault.sign(KEY, b"x")


def test_a_process_that_asks_for_ever(vault) -> None:
    """The time of a person does not count: so there is an end to what it may ask."""
    question = framed('{"ask":"the PIN, please"}')
    with rogue(vault) as theirs:
        theirs.sendall(question * 100)
        with pytest.raises(DeviceGone, match="out of its mind"):
            vault.probe()
    assert vault.sign(KEY, b"x")


def test_it_stands_in_no_folder_of_others(vaults, tmp_path, monkeypatch) -> None:
    """Yubico's module takes a yubihsm_pkcs11.conf from there, and tpm2-pkcs11 a store."""
    monkeypatch.chdir(tmp_path)
    assert os.readlink(f"/proc/{pid_of(vaults())}/cwd") == "/"


# --- what modules write to stderr


@pytest.fixture
def spoken() -> Iterator[tuple[Complaints, int]]:
    reading, writing = os.pipe()
    yield Complaints(reading), writing
    os.close(reading)
    os.close(writing)


def test_complaints_are_bounded(spoken) -> None:
    complaints, stderr = spoken
    assert complaints.take() == []
    os.write(stderr, b"ERROR: \x1b[31m" + b"x" * 1000 + b"\n\n" + b"again\n" * 99)
    said = complaints.take()
    assert len(said) == LINES + 1
    assert said[-1] == "(80 more lines)"
    assert len(said[0]) == 300
    assert said[0].isprintable()
    assert complaints.take() == []


@pytest.mark.parametrize(
    "line",
    ["C_Login pin=48151623", "34 38 31 35 31 36 32 33  4815", "0x34:0x38:0x31:35:31:36:32:33"],
)
def test_a_line_with_the_pin_is_left_out(spoken, tmp_path, line) -> None:
    complaints, stderr = spoken
    file = tmp_path / "pin"
    file.write_text("48151623\n")
    file.chmod(0o600)
    complaints.source = f"file:{file}"
    os.write(stderr, f"before\n{line}\nafter\n".encode())
    assert complaints.take() == ["before", "(it held the PIN)", "after"]
    file.unlink()
    os.write(stderr, f"{line}\n".encode())
    assert complaints.take() == ["(it held the PIN)"]


def test_without_the_pin_nothing_is_believed(spoken, tmp_path) -> None:
    complaints, stderr = spoken
    complaints.source = f"file:{tmp_path}/none"
    os.write(stderr, b"one\ntwo\n")
    assert complaints.take() == ["(2 lines were left out: the PIN to look for cannot be read)"]


def test_last_words(spoken) -> None:
    complaints, stderr = spoken
    os.write(stderr, b"pin 1234\nfree(): invalid pointer\npin 1234\n")
    assert last_words(complaints._fd) == "free(): invalid pointer"
    os.write(stderr, b"pin 1234\n")
    assert last_words(complaints._fd) == ""


def test_the_log_is_bounded(caplog) -> None:
    import logging  # noqa: PLC0415

    now = 0.0
    log = Log(logging.getLogger("said"), a_minute=3, now=lambda: now)
    with caplog.at_level(logging.INFO):
        log.write("module", ["x"] * 10)
        assert len(caplog.messages) == 3
        now = 61.0
        log.write("module", ["y"])
    assert caplog.messages[3:] == ["module said 7 lines more", "module says: y"]
