"""The floor plan: who imports what, how large files are, who runs what is owed. Called by pytest."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from smi_workflow.effects.periodic import WORK
from smi_workflow.effects.registry import HANDLERS
from smi_workflow.engine.unit import EVENT_QUEUE
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.refunds import REFUND
from smi_workflow.jobs.schedule import PERIODIC, SCHEDULE

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("stripe", "dramatiq", "redis", "requests", "flask", "PIL", "jinja2", "smtplib", "pydantic", "gunicorn")
BROKER_ROOMS = {
    "smi_workflow/integrations/broker.py",
    "smi_workflow/integrations/consumer.py",
    "smi_workflow/integrations/embedded_broker.py",
}
EFFECTS = {**JOB.effects(), **REFUND.effects(), **SCHEDULE.effects()}


def sources(*folders: str) -> Iterator[tuple[str, str]]:
    """Path relative to the root, and text, of every source file below."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text()


@cache
def tree(text: str) -> ast.Module:
    """A file, parsed once."""
    return ast.parse(text)


def imported(text: str) -> set[str]:
    """The top-level names of the packages that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(tree(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def loaded_by(*modules: str) -> set[str]:
    """What a fresh interpreter has loaded after importing these."""
    code = f"import sys, {', '.join(modules)}; print('\\n'.join(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(answer.stdout.split())


def test_the_engine_loads_no_provider_no_web_and_no_broker() -> None:
    modules = [
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path, _ in sources("smi_workflow/engine")
    ]
    assert "smi_workflow.engine.perform" in modules
    loaded = loaded_by("smi_workflow", *modules)
    assert not [name for name in OUTSIDE if name in loaded]
    assert not [name for name in loaded if re.match(r"smi_workflow\.(?!engine|errors)\w", name)]


def test_the_jobs_load_no_provider_no_web_and_no_broker() -> None:
    loaded = loaded_by("smi_workflow.jobs.manager", "smi_workflow.jobs.refunds")
    assert not [name for name in ("stripe", "dramatiq", "redis", "requests", "flask", "PIL") if name in loaded]


def test_only_the_workflow_imports_transitions() -> None:
    found = {path for path, text in sources("smi_workflow", "workers") if "transitions" in imported(text)}
    assert found == {"smi_workflow/engine/workflow.py"}


def test_only_workers_and_the_doorbell_import_the_broker() -> None:
    found = {
        path for path, text in sources("smi_workflow", "workers") if imported(text) & {"dramatiq", "redis", "pika"}
    }
    assert {path for path in found if not path.startswith("workers/")} <= BROKER_ROOMS
    assert "workers/actors.py" in found


def test_only_one_place_reads_the_environment() -> None:
    """Settings are arguments elsewhere; the command line looks at its terminal, and starts programs."""
    found = {path for path, text in sources("smi_workflow", "workers") if re.search(r"os\.(environ|getenv)", text)}
    assert {path for path in found if not path.startswith("smi_workflow/cli/")} == {"smi_workflow/settings.py"}


@pytest.mark.parametrize("name", sorted(EFFECTS))
def test_every_effect_has_a_handler_and_says_what_its_failure_means(name: str) -> None:
    assert name in HANDLERS
    assert (EFFECTS[name].failure is None) == bool(EFFECTS[name].harmless)


def test_every_kind_of_periodic_work_has_code() -> None:
    assert set(WORK) == {item.name for item in PERIODIC}


def test_no_handler_serves_an_effect_that_nobody_owes() -> None:
    assert set(HANDLERS) == set(EFFECTS)
    runs = [run for run, _ in HANDLERS.values()]
    assert len(set(runs)) == len(runs)


def test_an_effect_that_fails_for_good_after_a_call_is_looked_up_first() -> None:
    """Those that make something at a provider that is lost or doubled if nobody looks."""
    assert {name for name, (_, lookup) in HANDLERS.items() if lookup is not None} == {
        "create_checkout", "submit_refund", "submit_upscale", "fetch_result",
    }  # fmt: skip


def test_every_queue_is_consumed_by_exactly_one_process() -> None:
    consumed = [
        queue
        for line in (ROOT / "Procfile").read_text().splitlines()
        if (found := re.search(r"dramatiq workers\.actors .*--queues ([a-z ]+)", line))
        for queue in found[1].split()
    ]
    assert sorted(consumed) == sorted({effect.queue for effect in EFFECTS.values()} | {EVENT_QUEUE})


def test_the_worker_of_hooks_does_nothing_else() -> None:
    """A receiver that hangs takes its threads: no mail, payment or upscale may wait for one."""
    lines = [line for line in (ROOT / "Procfile").read_text().splitlines() if "dramatiq" in line]
    (queues,) = [line.partition("--queues ")[2].split() for line in lines if "hooks" in line.split()]
    assert queues == ["hooks"] == sorted({effect.queue for effect in EFFECTS.values() if "hook" in effect.name})


def test_files_stay_small_enough_to_be_read() -> None:
    sizes = {path: len(text.splitlines()) for path, text in sources("smi_workflow", "workers")}
    assert not {path: size for path, size in sizes.items() if size > 400}
    assert sizes["smi_workflow/jobs/lifecycle.py"] <= 250


def test_every_module_says_what_it_owns() -> None:
    silent = [path for path, text in sources("smi_workflow", "workers") if not ast.get_docstring(tree(text))]
    assert not silent


def test_nothing_is_imported_inside_functions() -> None:
    """One deferred import is allowed: open_app, so that the engine alone loads no Stripe."""
    found = {
        path
        for path, text in sources("smi_workflow", "workers")
        for function in ast.walk(tree(text))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert found <= {"smi_workflow/__init__.py"}
