"""The memory of a refused PIN: across restarts, power cuts, processes, and changes of the PIN."""

import json
import os
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest

from vault_backends.pkcs11 import marker as marker_file
from vault_backends.pkcs11.pin import Pin, Secret, WrongPin
from vault_backends.uri import Pkcs11Uri
from vault_backends.vault import DeviceGone, Locked, TokenState, VaultError

from .conftest import secret_file

TOKEN = TokenState(present=True, label="edge", serial="77")


class Killed(BaseException):
    """Stands for the process ending inside the login."""


@pytest.fixture
def pin_file(tmp_path: Path) -> Path:
    return secret_file(tmp_path / "pin", "98765\n")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def restarted(pin_file: Path, state: Path):
    """Makes the Pin of a new process."""
    return lambda: Pin(uri(f"file:{pin_file}"), None, state)


@pytest.fixture
def credential(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch):
    """The same with a systemd credential, which is written anew at each start."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))

    def start(pin: str = "98765") -> Pin:
        (tmp_path / "edge-pin").unlink(missing_ok=True)
        secret_file(tmp_path / "edge-pin", pin)
        return Pin(uri("credential:edge-pin"), None, state)

    return start


def uri(source: str) -> Pkcs11Uri:
    return Pkcs11Uri("/m.so", pin_source=source)


def login(pin: Pin, outcome: BaseException | None = None, token: TokenState = TOKEN) -> str:
    with pin.attempt(token, "token 'edge'") as secret:
        if outcome is not None:
            raise outcome
    return secret.reveal()


def refuse(pin: Pin) -> None:
    with pytest.raises(Locked, match="refused the PIN"):
        login(pin, WrongPin("PinIncorrect"))


def kill(pin: Pin) -> None:
    with pytest.raises(Killed):
        login(pin, Killed())


def marker(state: Path) -> Path:
    (found,) = state.glob("pin-*.json")
    return found


def record(state: Path) -> dict[str, object]:
    return json.loads(marker(state).read_text())


# --- refused


def test_good_pin(restarted, state) -> None:
    for _ in range(5):
        assert login(restarted()) == "98765"
    assert record(state) == {
        "state": "ok",
        "broken": 0,
        "refused": [],
        "tried": None,
        "counted": False,
        "unclear": 0,
        "at": 0.0,
    }


def test_refused_across_restarts_until_it_is_changed(restarted, pin_file, state) -> None:
    refuse(restarted())
    for _ in range(2):
        with pytest.raises(Locked, match="not tried again") as caught:
            login(restarted())
        assert str(marker(state)) in caught.value.hint
    assert "98765" not in marker(state).read_text()
    pin_file.write_text("55555")
    assert login(restarted()) == "55555"


def test_touched_or_rewritten_is_not_changed(restarted, pin_file) -> None:
    refuse(restarted())
    os.utime(pin_file, (1, 1))
    with pytest.raises(Locked, match="not tried again"):
        login(restarted())
    pin_file.unlink()
    secret_file(pin_file, "98765")  # without the newline, and another file
    with pytest.raises(Locked, match="not tried again"):
        login(restarted())


def test_refused_for_ever_also_after_another_was_right(restarted, pin_file) -> None:
    refuse(restarted())
    pin_file.write_text("55555")
    login(restarted())
    pin_file.write_text("98765")
    with pytest.raises(Locked, match="not tried again"):
        login(restarted())


def test_refused_wherever_it_comes_from(restarted, state, tmp_path, credential) -> None:
    refuse(restarted())
    other = secret_file(tmp_path / "other", "98765")
    for pin in (
        Pin(uri(f"file:{other}"), None, state),
        Pin(uri("ask"), lambda prompt: "98765", state),
        credential(),
        Pin(Pkcs11Uri("/m.so", pin_source="pin-value", pin_value="98765"), None, state),
    ):
        with pytest.raises(Locked, match="not tried again"):
            login(pin)


def test_refused_until_the_marker_is_removed(restarted, state) -> None:
    refuse(restarted())
    marker(state).unlink()
    assert login(restarted()) == "98765"


def test_refused_until_a_person_vouches_for_it(restarted) -> None:
    refuse(restarted())
    restarted().forget(TOKEN)
    assert login(restarted()) == "98765"


def test_the_file_has_a_byte_of_refused_pins_only(restarted, credential, state) -> None:
    login(restarted())
    assert record(state)["refused"] == []
    refuse(credential("111111"))
    assert record(state)["refused"] == ["da"]
    kill(credential("98765"))
    assert record(state)["tried"] is None
    assert marker(state).stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700


def test_tokens_are_apart(restarted) -> None:
    refuse(restarted())
    assert login(restarted(), token=TOKEN._replace(serial="78")) == "98765"


def test_another_way_to_the_same_token_is_no_new_chance(restarted) -> None:
    refuse(restarted())
    with pytest.raises(Locked, match="not tried again"):
        login(restarted(), token=TOKEN._replace(model="the model as another module names it"))


# --- broken off


def test_broken_off_may_be_tried_once_more(restarted, state) -> None:
    kill(restarted())
    kill(restarted())
    for _ in range(2):
        with pytest.raises(Locked, match=r"2 logins .* broke off") as caught:
            login(restarted())
        assert str(marker(state)) in caught.value.hint


def test_also_with_a_pin_that_was_right_once(restarted) -> None:
    login(restarted())
    kill(restarted())
    login(restarted())
    kill(restarted())
    kill(restarted())
    with pytest.raises(Locked, match="broke off"):
        login(restarted())


def test_also_with_a_credential(credential) -> None:
    kill(credential())
    kill(credential())
    for pin in ("98765", "55555"):  # nothing is known of the first one
        with pytest.raises(Locked, match="broke off"):
            login(credential(pin))
    credential().forget(TOKEN)
    login(credential())


def test_broken_off_with_another_pin_does_not_count(restarted, pin_file) -> None:
    kill(restarted())
    kill(restarted())
    os.utime(pin_file)
    with pytest.raises(Locked):
        login(restarted())
    pin_file.write_text("55555")
    kill(restarted())
    assert login(restarted()) == "55555"


def test_broken_off_keeps_what_was_refused(restarted, pin_file) -> None:
    refuse(restarted())
    pin_file.write_text("55555")
    kill(restarted())
    pin_file.write_text("98765")
    with pytest.raises(Locked, match="refused this PIN"):
        login(restarted())


COUNTED = TOKEN._replace(pin_tried=True)


def test_broken_off_and_the_token_counted_it(restarted, pin_file, state) -> None:
    """The counter of the token says how the login ended that nobody wrote the end of."""
    kill(restarted())
    for token in (COUNTED, TOKEN):  # for ever, also when somebody's login has reset the counter
        with pytest.raises(Locked, match="refused this PIN"):
            login(restarted(), token=token)
    assert record(state)["state"] == "failed"
    pin_file.write_text("55555")
    assert login(restarted(), token=COUNTED) == "55555"


def test_broken_off_and_counted_meanwhile(restarted, state) -> None:
    """The flags are those under the lock, not those from before it."""
    kill(restarted())
    with (
        pytest.raises(Locked, match="refused this PIN"),
        restarted().attempt(TOKEN, "edge", lambda: COUNTED),
    ):
        pytest.fail("the PIN was given out")


def test_broken_off_with_a_wrong_pin_that_was_changed_since(restarted, pin_file, state) -> None:
    kill(restarted())
    pin_file.write_text("55555")
    assert login(restarted(), token=COUNTED) == "55555"
    pin_file.write_text("98765")
    with pytest.raises(Locked, match="refused this PIN"):
        login(restarted())


def test_broken_off_while_the_counter_told_of_an_older_one(restarted) -> None:
    """It was up before: it tells nothing, and one more try is allowed."""
    with pytest.raises(Killed):
        login(restarted(), Killed(), token=COUNTED)
    login(restarted(), token=COUNTED)


def test_broken_off_with_a_credential_and_counted(credential) -> None:
    """Nothing is known of the PIN, but that it was wrong."""
    kill(credential())
    for pin in ("98765", "55555"):
        with pytest.raises(Locked, match="wrong") as caught:
            login(credential(pin), token=COUNTED)
        assert "remove" in caught.value.hint
    credential().forget(TOKEN)
    login(credential())


@pytest.mark.parametrize(
    "text",
    ['{"sta', "[]", '"ok"', '{"state": "odd"}', "", "[" * 60000]
    + [f'{{"state": "ok", "broken": {number}, "refused": [], "tried": null}}'
       for number in ("Infinity", "NaN", "1" * 5000)],
)  # fmt: skip
def test_spoilt_marker_counts_as_broken_off(restarted, state, text) -> None:
    login(restarted())
    marker(state).write_text(text)
    kill(restarted())
    with pytest.raises(Locked, match="broke off"):
        login(restarted())


def test_marker_is_on_the_disk_before_the_login(restarted, state, monkeypatch) -> None:
    """File and folder are flushed, and the record says unknown, when the PIN is given out."""
    done: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with restarted().attempt(TOKEN, "edge"):
        assert record(state)["state"] == "unknown"
        assert done == [str(state / f".{marker(state).name}"), str(state)]


def test_whole_at_every_moment(restarted, pin_file, state, monkeypatch) -> None:
    """A power cut while the marker is written leaves the one before."""
    refuse(restarted())
    pin_file.write_text("55555")

    def cut(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", cut)
        with pytest.raises(Killed):
            login(restarted())
    assert record(state)["state"] == "failed"
    assert login(restarted()) == "55555"


# --- no verdict


def test_other_error_is_no_verdict(restarted, state) -> None:
    for _ in range(4):
        with pytest.raises(RuntimeError):
            login(restarted(), RuntimeError("device gone"))
    assert (record(state)["state"], record(state)["unclear"]) == ("new", 4)


def test_logins_that_say_nothing_are_fewer_and_fewer(pin_file, state) -> None:
    """A token may answer a wrong PIN so, and count it in silence."""
    now = 1000.0

    def attempt(error: Exception | None = None) -> None:
        login(Pin(uri(f"file:{pin_file}"), None, state, lambda: now), error)

    tried = 0
    for _ in range(3600):  # an hour, tried each second by programs that start anew
        with pytest.raises((RuntimeError, DeviceGone)) as caught:
            attempt(RuntimeError("FunctionFailed"))
        tried += caught.type is RuntimeError
        now += 1.0
    assert 8 <= tried <= 14
    now -= 10_000.0  # the clock is set back: nobody waits for ever
    attempt()
    assert (record(state)["state"], record(state)["unclear"]) == ("ok", 0)


def test_a_pause_is_an_error_that_passes(pin_file, state) -> None:
    for _ in range(4):
        with pytest.raises(RuntimeError):
            login(Pin(uri(f"file:{pin_file}"), None, state), RuntimeError("FunctionFailed"))
    with pytest.raises(DeviceGone, match="in a row"):
        login(Pin(uri(f"file:{pin_file}"), None, state))


def test_check_comes_after_what_is_known_and_before_the_marker(restarted, state) -> None:
    def check() -> None:
        raise Locked("one try left")

    with (
        pytest.raises(Locked, match="one try left"),
        restarted().attempt(TOKEN, "edge", check),
    ):
        pytest.fail("the PIN was given out")
    assert not list(state.glob("pin-*.json"))


# --- several at once


def test_one_try_in_all_of_two_processes(tmp_path, pin_file, state) -> None:
    code = """
import sys, time, os
from pathlib import Path
from vault_backends.pkcs11.pin import Pin, WrongPin
from vault_backends.uri import Pkcs11Uri
from vault_backends.vault import Locked, TokenState
pin = Pin(Pkcs11Uri("/m.so", pin_source=f"file:{sys.argv[1]}"), None, Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
try:
    with pin.attempt(TokenState(present=True, label="edge"), "edge"):
        print("tried", flush=True)
        time.sleep(0.3)
        raise WrongPin("PinIncorrect")
except Locked:
    print("locked", flush=True)
"""
    command = [sys.executable, "-c", code, str(pin_file), str(state)]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)
    ]
    for one in running:
        assert one.stdout
        assert one.stdout.readline() == "ready\n"
    said = ""
    for one in running:
        assert one.stdin
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in running:
        out, errors = one.communicate(timeout=60)
        assert one.returncode == 0, errors
        said += out
    assert said.count("tried") == 1
    assert said.count("locked") == 3


def test_waiting_for_another_login_ends(restarted, state, monkeypatch) -> None:
    monkeypatch.setattr(marker_file, "_PATIENCE", 0.1)
    inside, done = threading.Event(), threading.Event()

    def hang() -> None:
        with restarted().attempt(TOKEN, "edge"):
            inside.set()
            done.wait(30)

    thread = threading.Thread(target=hang)
    thread.start()
    assert inside.wait(30)
    try:
        with pytest.raises(DeviceGone, match="another process") as caught:
            login(restarted())
        assert caught.value.retry
    finally:
        done.set()
        thread.join()


# --- answers, and places


def test_answers_are_remembered_too(state) -> None:
    answers = iter(["98765", "98765", "55555"])
    pin = Pin(uri("ask"), lambda prompt: next(answers), state)
    refuse(pin)
    with pytest.raises(Locked, match="from the answer before"):
        login(pin)
    assert login(pin) == "55555"


def test_without_a_folder_this_process_remembers(pin_file) -> None:
    pin = Pin(uri(f"file:{pin_file}"), None, None)
    refuse(pin)
    with pytest.raises(Locked, match="not tried again"):
        login(pin)
    assert pin.marker(TOKEN) is None


def test_state_that_cannot_be_kept(state, restarted) -> None:
    state.write_text("a file")
    with pytest.raises(VaultError, match="cannot keep"):
        login(restarted())
    state.unlink()
    login(restarted())
    path = marker(state)
    path.unlink()
    path.mkdir()
    with pytest.raises(VaultError, match="cannot keep"):
        login(restarted())


def test_link_in_the_place_of_the_marker_is_not_followed(state, restarted, tmp_path) -> None:
    login(restarted())
    path = marker(state)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VaultError, match="cannot keep"):
        login(restarted())


def test_secrets_show_nowhere(restarted) -> None:
    assert "98765" not in repr(Secret("98765")) + str(Secret("98765"))
    try:
        login(restarted(), WrongPin("PinIncorrect"))
    except Locked as error:
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        text = "".join(shown.format())
    assert "attempt" in text
    assert "98765" not in text
