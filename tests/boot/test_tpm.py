"""A key in a TPM (the emulator swtpm) that a node uses from inside the sandbox."""

from collections.abc import Iterator

import pytest

from tests.boot import roots
from tests.boot.machine import Machine
from tests.boot.network import network
from tests.boot.world import DEBS, PIN, SERVICE, Packages, edge, install, made

DROPIN = """[Service]
Environment=TPM2_PKCS11_STORE=/var/lib/ockam-edge/tpm TSS2_LOG=all+NONE
Environment=TPM2_PKCS11_TCTI=swtpm:host=127.0.0.1,port=2321
"""
SWTPM = (
    "systemd-run --quiet --unit=swtpm swtpm socket --tpm2 --tpmstate dir=/var/lib/swtpm"
    " --server type=tcp,port=2321 --ctrl type=tcp,port=2322 --flags not-need-init,startup-clear"
)


@pytest.fixture(params=roots.PACKAGES)
def gateway(request: pytest.FixtureRequest, packages: Packages) -> Iterator[Machine]:
    """With the package, a TPM and a PIN."""
    binds = [f"{packages.folder}:{DEBS}"]
    with (
        network() as names,
        Machine(roots.root(request.param), "tpm", netns=names.gateway, binds=binds) as machine,
    ):
        install(machine, packages.gateway(packages.version))
        folder = "/etc/systemd/system/ockam-edge.service.d"
        machine.sh(f"mkdir -p /var/lib/swtpm {folder}; {SWTPM}")
        machine.write(f"{folder}/tpm.conf", DROPIN)
        machine.sh(
            "systemctl daemon-reload; install -d -o ockam-edge -m 700 /var/lib/ockam-edge/tpm"
        )
        machine.write("/etc/credstore/ockam-edge.pin", PIN, mode="0600")
        yield machine


def test_a_key_in_a_tpm(gateway: Machine) -> None:
    module = gateway.sh("ls /usr/lib/*/pkcs11/libtpm2_pkcs11.so")
    secret = "credential:ockam-edge.pin"
    edge(gateway, "systemd", "run", "hsm", "init", "--module", module, "--label", "edge",
         "--pin-source", secret, "--so-pin-source", secret)  # fmt: skip
    token = f"pkcs11:token=edge?module-path={module}&pin-source={secret}"
    identifier = made(gateway, "systemd", "run", "identity", "create", "gateway", "--vault", token)
    edge(gateway, "node", "create", "gateway", "--identity", "gateway", "--no-start")
    for verb in ("start", "restart"):
        gateway.run("systemctl", verb, SERVICE)
        said = gateway.sh("ockam-edge node show gateway")
        assert identifier in said
        assert '"state": "present"' in said
        assert '"signatures": 1' in said
    score = gateway.sh(f"systemd-analyze security --no-pager --threshold=13 {SERVICE} | tail -1")
    assert "OK" in score
