"""Owns the asking for known vulnerabilities of what we depend on. Run by CI: `python -m tests.support.audit`.

pip-audit asks PyPI about each pinned package. Where PyPI's vulnerability data cannot be reached (a mirror serves
packages without it, and pip-audit then says "No known vulnerabilities found"), a package that is known to be
vulnerable is not reported either; that is asked first, and the run says that nothing was audited.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[2] / "config" / "constraints.txt"
# CVE-2018-18074 and later ones: whoever has data knows it.
CANARY = "requests==2.19.0"
SECONDS = 300

Ask = Callable[[Sequence[str]], list[dict[str, Any]]]


def audit(ask: Ask, pins: Sequence[str]) -> tuple[int, str]:
    """Whether anything known is wrong with the pinned packages.

    Returns: the exit status and what to print: 1 for findings, 0 for none or for an audit that is not possible.
    """
    try:
        (canary,) = ask([CANARY])
    except (OSError, ValueError) as trouble:
        return 0, f"NOT AUDITED: pip-audit cannot be asked: {trouble}"
    if not canary.get("vulns"):
        why = canary.get("skip_reason") or "it knows nothing of a package that is known to be vulnerable"
        return 0, f"NOT AUDITED: the vulnerability service cannot be asked here: {why}"
    try:
        told = ask(pins)
    except (OSError, ValueError) as trouble:
        return 0, f"NOT AUDITED: pip-audit broke off: {trouble}"
    found = [
        f"{one['name']} {one['version']}: {vuln['id']}, mended in {', '.join(vuln['fix_versions']) or 'none'}"
        for one in told
        for vuln in one.get("vulns", [])
    ]
    unknown = [f"{one['name']}: {one['skip_reason']}" for one in told if "skip_reason" in one]
    lines = [f"audited {len(told) - len(unknown)} of {len(pins)} packages, {len(found)} known vulnerabilities"]
    return int(bool(found)), "\n".join([*lines, *found, *(f"NOT AUDITED: {one}" for one in unknown)])


def ask_pip_audit(pins: Sequence[str]) -> list[dict[str, Any]]:
    """What pip-audit says of these, without resolving or installing anything.

    Raises:
        OSError, ValueError: it could not be run, or gave no answer.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        try:
            done = subprocess.run(
                [
                    sys.executable, "-m", "pip_audit", "--requirement", file.name, "--no-deps", "--disable-pip",
                    "--format", "json", "--progress-spinner", "off", "--timeout", "10",
                ],
                capture_output=True, text=True, timeout=SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            raise OSError(f"no answer within {SECONDS} s") from late
    if not done.stdout.strip():
        raise ValueError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    return dependencies


def pinned() -> list[str]:
    """What config/constraints.txt pins, as `name==version`."""
    return [line for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")]


def main() -> int:
    """Audit what is pinned; returns the exit status."""
    status, text = audit(ask_pip_audit, pinned())
    sys.stdout.write(f"{text}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
