"""`python -m benchmarks.tokens`: signatures in each token, beside software and the usual commands.

In one run, in turns, on one machine: the vault over the token's module, in a process of its own;
`cryptography` in the same process; and `pkcs11-tool`, which starts and logs in for each signature, as
scripts do, so that its figure is one of whole commands. `openssl speed` is the roof in software. The
memory is what the process grew by from the opened interpreter to the first signature."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from benchmarks import report
from tests.tokens.cells import Cell, cells
from tests.tokens.environments import Environment
from tests.tokens.holder import Holder
from vault_backends.vault import Kind


@dataclass
class Speed:
    """Signatures per second one after the other, and the time of one, in microseconds."""

    per_s: float
    p50_us: float
    p99_us: float


def measured(sign: Callable[[], object], seconds: float) -> Speed:
    sign()
    times: list[float] = []
    stop = time.monotonic() + seconds
    while time.monotonic() < stop or len(times) < 5:
        began = time.perf_counter()
        sign()
        times.append(time.perf_counter() - began)
    return speed_of(times)


def speed_of(times: list[float]) -> Speed:
    ordered = sorted(times)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1e6 for part in (0.5, 0.99)]
    return Speed(round(len(times) / sum(times), 1), round(at[0], 1), round(at[1], 1))


def software(kind: Kind, seconds: float) -> Speed:
    """`cryptography` with a key in memory."""
    data = b"x" * 64
    if kind is Kind.ED25519:
        signing = ed25519.Ed25519PrivateKey.generate()
        return measured(lambda: signing.sign(data), seconds)
    key = ec.generate_private_key(ec.SECP256R1())
    return measured(lambda: key.sign(data, ec.ECDSA(hashes.SHA256())), seconds)


def openssl(kind: Kind, seconds: float) -> float:
    """Signatures per second, as `openssl speed` counts them."""
    name = "ed25519" if kind is Kind.ED25519 else "ecdsap256"
    command = ["openssl", "speed", "-seconds", str(max(1, int(seconds))), name]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.search(r"([\d.]+)\s+[\d.]+\s*$", said.strip())
    return float(found[1]) if found else 0.0


def tool(token: Environment, label: str, kind: Kind, folder: Path, times: int) -> Speed | None:
    """Whole commands of pkcs11-tool, where that can be."""
    if not token.has_tool or kind is not Kind.P256:  # OpenSC 0.23 signs nothing with Ed25519 keys
        return None
    (folder / "in").write_bytes(bytes(32))
    files = ["--input-file", f"{folder}/in", "--output-file", f"{folder}/out"]
    took = []
    for _ in range(times):
        token.clean()
        began = time.perf_counter()
        token.tool("--sign", "--mechanism", "ECDSA", "--label", label, *files)
        took.append(time.perf_counter() - began)
    return speed_of(took)


def row(cell: Cell, folder: Path, seconds: float, times: int) -> dict[str, object]:
    """All about one token and kind."""
    label = "bench"
    with cell.environment(folder / "token") as token:
        with Holder(token.uri(), token.variables, prefix=token.prefix) as vault:
            before = vault.ask("rss")
            key = vault.generate(cell.kind, label)
            vault.sign(key, b"x")
            grown = vault.ask("rss") - before
            took = vault.ask("time", kind=cell.kind, label=label, seconds=seconds)
        return {
            "environment": token.name,
            "about": token.about,
            "kind": str(cell.kind),
            "token": asdict(speed_of(took)),
            "software": asdict(software(cell.kind, seconds)),
            "openssl_per_s": openssl(cell.kind, seconds),
            "pkcs11_tool": (found := tool(token, label, cell.kind, folder, times))
            and asdict(found),
            "rss_added_kib": grown,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="for each measurement")
    parser.add_argument("--commands", type=int, default=20, help="runs of pkcs11-tool")
    parser.add_argument("--only", help="slugs of tokens, with commas between")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    given = parser.parse_args()
    rows = []
    for cell in cells():
        if given.only and cell.environment.slug not in given.only.split(","):
            continue
        if why := cell.environment.missing():
            print(f"not measured: {cell.environment.name}: {why}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory(prefix="edge-bench-tokens-") as folder:
            rows.append(row(cell, Path(folder), given.seconds, given.commands))
        print(json.dumps(rows[-1]), file=sys.stderr)
    result: dict[str, object] = {"machine": report.machine(), "tokens": rows}
    print(table(rows))
    print(f"written to {report.save(result, '-tokens', given.output)}")


def table(rows: list[dict[str, object]]) -> str:
    head = ["token", "kind", "signatures/s", "p50 us", "p99 us", "software/s", "openssl/s"]
    head += ["pkcs11-tool/s", "RSS KiB"]
    lines = []
    for one in rows:
        ours, soft, other = (one[name] for name in ("token", "software", "pkcs11_tool"))
        assert isinstance(ours, dict)
        assert isinstance(soft, dict)
        values = [ours["per_s"], ours["p50_us"], ours["p99_us"], soft["per_s"]]
        values += [one["openssl_per_s"], other["per_s"] if isinstance(other, dict) else "-"]
        cells_ = [str(value) for value in (*values, one["rss_added_kib"])]
        lines.append([str(one["environment"]), str(one["kind"]), *cells_])
    return report.table(head, lines)


if __name__ == "__main__":
    main()
