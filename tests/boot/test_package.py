"""The life of the package on a gateway that is in use. After everything else: it ends with a purge."""

import pytest

from tests.boot.world import SERVICE, Scene, edge, install, main_pid, query

STATE = "/var/lib/ockam-edge"


def version(at: Scene) -> str:
    return at.gateway.sh("dpkg -s ockam-edge | sed -n 's/^Version: //p'")


@pytest.mark.parametrize("direction", ["newer", "version"])
def test_one_version_up_and_down(at: Scene, direction: str) -> None:
    wanted = getattr(at.packages, direction)
    pid = main_pid(at.gateway)
    install(at.gateway, at.packages.gateway(wanted))
    assert version(at) == wanted
    assert main_pid(at.gateway) not in (0, pid)
    assert query(at.client) == "pump-7"
    assert at.gateway.sh("dpkg --verify ockam-edge | grep -v /usr/share/doc/ || true") in (
        "",
        "missing     /usr/share/doc/ockam-edge",  # the root file system is without documents
    )


def test_an_upgrade_leaves_what_was_stopped_alone(at: Scene) -> None:
    at.gateway.run("systemctl", "disable", "--now", SERVICE)
    install(at.gateway, at.packages.gateway(at.packages.version))
    assert at.gateway.show(SERVICE, "ActiveState") == "inactive"
    assert at.gateway.show(SERVICE, "UnitFileState") == "disabled"
    at.gateway.run("systemctl", "enable", "--now", SERVICE)
    assert query(at.client) == "pump-7"


def test_removed_and_back(at: Scene) -> None:
    at.gateway.run("dpkg", "--remove", "ockam-edge")
    assert at.gateway.sh("pgrep -u ockam-edge || true") == ""
    assert (
        at.gateway.sh("find /usr -name '*ockam-edge*' -o -name '__pycache__' -path '*edge*'") == ""
    )
    assert at.gateway.run("test", "-e", f"{STATE}/edge.db").returncode == 0
    install(at.gateway, at.packages.gateway(at.packages.version))
    assert query(at.client) == "pump-7"


def test_by_pipx_instead(at: Scene) -> None:
    """The tree of the package stands for that of pipx: another place, and the same command."""
    there = "/opt/pipx/venvs/ockam-edge"
    at.gateway.sh(
        f"mkdir -p {there}; cp -a /usr/lib/ockam-edge/. {there}/; mkdir -p {there}/share/ockam-edge;"
        f" sed -i '1s|.*|#!{there}/bin/python3 -I|' {there}/bin/ockam-edge"
    )
    at.gateway.sh(f"mkdir -p {there}/share/ockam-edge/systemd")
    from tests.boot.world import ROOT  # noqa: PLC0415

    for path in sorted((ROOT / "systemd").iterdir()):
        if path.is_file():
            at.gateway.write(f"{there}/share/ockam-edge/systemd/{path.name}", path.read_text())
    refused = at.gateway.run(f"{there}/bin/ockam-edge", "systemd", "install", check=False)
    assert "the Debian package" in refused.stderr
    at.gateway.run("dpkg", "--remove", "ockam-edge")
    masked = at.gateway.run(f"{there}/bin/ockam-edge", "systemd", "install", check=False)
    assert "hint: systemctl unmask ockam-edge.service" in masked.stderr
    at.gateway.run("systemctl", "unmask", SERVICE)
    at.gateway.run(f"{there}/bin/ockam-edge", "systemd", "install")
    at.gateway.run("systemctl", "restart", SERVICE)
    assert query(at.client) == "pump-7"
    assert there in at.gateway.sh("systemctl status ockam-edge")
    score = at.gateway.sh(f"systemd-analyze security --no-pager --threshold=13 {SERVICE} | tail -1")
    assert "OK" in score
    at.gateway.run(f"{there}/bin/ockam-edge", "systemd", "uninstall")
    assert at.gateway.sh("systemctl list-unit-files 'ockam-edge*' --no-legend || true") == ""
    install(at.gateway, at.packages.gateway(at.packages.version))
    at.gateway.run("systemctl", "start", SERVICE)
    assert query(at.client) == "pump-7"


def test_purged(at: Scene) -> None:
    at.gateway.sh("rm -rf /opt/pipx")
    at.gateway.run("dpkg", "--purge", "ockam-edge")
    left = at.gateway.sh(
        "find / -xdev \\( -path /proc -o -path /debs -o -path /sys \\) -prune"
        " -o -name '*ockam-edge*' -print"
    ).splitlines()
    others = (
        "/etc/systemd/system/ockam-edge.service.d",  # the operator's
        "/etc/systemd/system/ockam-edge@.service.d",
        "/var/tmp/systemd-private-",  # systemd's: it could not remove it while the root was read-only
    )
    assert [path for path in left if not path.startswith(others)] == []
    assert at.gateway.sh("systemctl --failed --no-legend") == ""
    with pytest.raises(AssertionError):
        edge(at.gateway, "--version")
