"""Where modules lie, and which may be loaded."""

import os
import shutil
from pathlib import Path

import pytest

pkcs11 = pytest.importorskip("pkcs11")


from vault_backends import open_vault  # noqa: E402
from vault_backends.pkcs11 import paths  # noqa: E402
from vault_backends.vault import (  # noqa: E402
    Misconfigured,
    NotFound,
    Refused,
)


def test_missing_module(tmp_path) -> None:
    for path, error, said in (
        ("/nowhere/x.so", NotFound, "/nowhere/x.so"),
        ("x.so", Misconfigured, "absolute"),
        ("/usr/lib", NotFound, "/usr/lib"),
    ):
        with pytest.raises(error, match=said):
            open_vault(f"pkcs11:token=edge?module-path={path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of root")
def test_what_is_no_module(tmp_path, opened) -> None:
    folder = tmp_path / "modules"
    folder.mkdir(mode=0o755)
    text = folder / "text.so"
    text.write_text("no library")
    with pytest.raises(Misconfigured, match="does not load"):
        list(opened(f"pkcs11:?module-path={text}").keys())
    libm = next(iter(Path("/usr/lib").glob("*/libm.so.6")))
    with pytest.raises(Misconfigured, match="does not load"):
        list(opened(f"pkcs11:?module-path={libm}").keys())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of root")
@pytest.mark.parametrize("place", ["folder", "file", "above", "owner"])
def test_module_that_others_can_change(soft_token, tmp_path, place) -> None:
    folder = tmp_path / "above" / "modules"
    folder.mkdir(parents=True, mode=0o755)
    copy = folder / "m.so"
    shutil.copy(soft_token.module, copy)
    copy.chmod(0o644)
    uri = f"pkcs11:token=edge?module-path={copy}"
    paths.check_path(str(copy))
    changed = {"folder": folder, "file": copy, "above": folder.parent, "owner": folder}[place]
    if place == "owner":
        os.chown(folder, 12345, -1)
    else:
        changed.chmod(0o777)
    with pytest.raises(Refused, match="12345" if place == "owner" else "0777") as caught:
        open_vault(uri)
    assert str(changed) in str(caught.value)
    link = tmp_path / "link.so"  # a link in a good folder leads to the same place
    link.symlink_to(copy)
    with pytest.raises(Refused, match=str(changed)):
        paths.check_path(str(link))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of root")
def test_links_on_the_way(soft_token, tmp_path) -> None:
    good = tmp_path / "good"
    good.mkdir(mode=0o755)
    shutil.copy(soft_token.module, good / "m.so")
    (good / "a.so").symlink_to("m.so")
    (good / "b.so").symlink_to("a.so")
    assert paths.check_path(str(good / "b.so")) == str(good / "m.so")
    loose = tmp_path / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    (loose / "c.so").symlink_to(good / "m.so")
    (good / "d.so").symlink_to(loose / "c.so")  # the middle of the way is enough
    with pytest.raises(Refused, match=str(loose)):
        paths.check_path(str(good / "d.so"))
    os.chown(good / "a.so", 12345, -1, follow_symlinks=False)
    with pytest.raises(Refused, match=r"link .*a\.so belongs to user 12345"):
        paths.check_path(str(good / "b.so"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of root")
def test_link_to_a_folder_on_the_way(soft_token, tmp_path) -> None:
    """Its owner decides each time anew which folder the library comes from."""
    good = tmp_path / "good"
    good.mkdir(mode=0o755)
    shutil.copy(soft_token.module, good / "m.so")
    (tmp_path / "way").symlink_to(good)
    paths.check_path(f"{tmp_path}/way/m.so")
    os.chown(tmp_path / "way", 12345, -1, follow_symlinks=False)
    with pytest.raises(Refused, match=r"link .*/way belongs to user 12345"):
        paths.check_path(f"{tmp_path}/way/m.so")


@pytest.mark.parametrize("name", ["softhsm2", "SoftHSM2", "softhsm"])
def test_module_by_name(soft_token, opened, name) -> None:
    uri = f"pkcs11:token=edge?module-name={name}&pin-source=file:{soft_token.pin_file}"
    vault = opened(uri)
    assert list(vault.keys()) == []
    assert os.path.realpath(vault.login.module.path) == os.path.realpath(soft_token.module)


def test_unknown_name_lists_those_there(soft_token) -> None:
    with pytest.raises(NotFound, match=r"'softhms'.*softhsm2"):
        open_vault("pkcs11:token=edge?module-name=softhms")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of root")
def test_names_of_p11_kit(tmp_path, monkeypatch) -> None:
    folder, libraries = tmp_path / "modules", tmp_path / "lib"
    folder.mkdir(mode=0o755)
    (libraries / "pkcs11").mkdir(parents=True, mode=0o755)
    for name in ("pkcs11/libnear.so", "far.so"):
        (libraries / name).write_text("")
    for file, text in {
        "one.module": "# a comment\nmodule: libnear.so\n",
        "two.module": f"critical: no\nmodule:{libraries}/far.so\n",
        "trust.module": f"module: {libraries}/far.so\ntrust-policy: yes\n",
        "gone.module": "module: /nowhere/x.so\n",
        "empty.module": "",
        "loose.module": f"module: {libraries}/far.so\n",
    }.items():
        (folder / file).write_text(text)
    (folder / "loose.module").chmod(0o666)
    monkeypatch.setattr(paths, "ROWS", ())
    monkeypatch.setattr(paths, "LIBRARIES", (str(libraries),))
    monkeypatch.setattr(paths, "P11_KIT", (folder, tmp_path / "absent"))
    near, far = str(libraries / "pkcs11/libnear.so"), str(libraries / "far.so")
    assert dict(paths.known_modules()) == {"one": near, "near": near, "two": far, "far": far}
    folder.chmod(0o777)
    assert set(dict(paths.known_modules())) == {"near"}
