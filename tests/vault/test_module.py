"""One library in this process: threads, forks, starting and stopping."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pkcs11 = pytest.importorskip("pkcs11")


from vault_backends import open_vault  # noqa: E402
from vault_backends.pkcs11 import module as module_file  # noqa: E402
from vault_backends.pkcs11 import points  # noqa: E402
from vault_backends.vault import (  # noqa: E402
    Misconfigured,
    VaultError,
)


def test_fifty_at_once_through_one_executor(vault, key) -> None:
    with ThreadPoolExecutor(1) as executor:
        signed = list(executor.map(lambda n: vault.sign(key, bytes([n])), range(50)))
    for n, one in enumerate(signed):
        assert points.verifies(key.kind, vault.public(key), bytes([n]), one)
    assert vault.logins == 1


def test_threads_do_no_harm(vault, key) -> None:
    failed: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for turn in range(20):
                vault.sign(key, bytes([n, turn]))
                if turn % 10 == n:
                    vault.reopen()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_locking_inside_the_module(soft_token) -> None:
    """In a process of its own: without CKF_OS_LOCKING_OK it crashes within seconds."""
    code = """
import sys, threading
from vault_backends import open_vault
from vault_backends.vault import Kind
vault = open_vault(sys.argv[1])
key = vault.generate(Kind.ED25519, "t")
token = vault.login._session.token
def work():
    session = token.open()
    for _ in range(3):
        for found in list(session.get_objects()):
            if hasattr(found, "sign"):
                for n in range(300):
                    found.sign(b"x", mechanism=__import__("pkcs11").Mechanism.EDDSA)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print("done")
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, soft_token.uri()], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr


def test_it_starts_where_nobody_leaves_settings(soft_token, tmp_path, monkeypatch) -> None:
    """Yubico's module takes a yubihsm_pkcs11.conf from there, and tpm2-pkcs11 a store."""
    seen: list[str] = []
    real = module_file._Library.initialize

    def initialize(library: module_file._Library) -> None:
        seen.append(os.getcwd())
        real(library)

    monkeypatch.setattr(module_file._Library, "initialize", initialize)
    monkeypatch.chdir(tmp_path)
    vault = open_vault(soft_token.uri())
    assert list(vault.keys()) == []
    vault.close()
    assert set(seen) == {"/"}
    assert os.getcwd() == str(tmp_path)


def test_fork_poisons_the_child(soft_token, vault, key) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            vault.sign(key, b"x")
        except VaultError as error:
            code = 0 if "fork" in str(error) else 2
        try:
            open_vault(soft_token.uri())
            code = 3
        except VaultError:
            pass
        vault.close()
        module_file.stop_all()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    vault.sign(key, b"x")
    assert vault.logins == 1


def test_other_parameters_for_the_same_module(soft_token, vault) -> None:
    with pytest.raises(Misconfigured, match="x-parameters"):
        open_vault(soft_token.uri() + "&x-parameters=a")
