"""Owns `make chaos`: sells under fire for some minutes, lets everything settle, and judges. Run as a program.

Real processes, a real broker and PostgreSQL, providers that misbehave; all of them but the providers are killed at
random. Exit status 0: every promise was kept.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console

from tests.chaos.checker import Finding, judge
from tests.chaos.doctor import violations
from tests.chaos.evidence import Evidence, Promise, open_links, read_history, read_mails
from tests.chaos.monkey import Monkey
from tests.chaos.report import figures, show, tell
from tests.chaos.shop import Shop, plan_sale
from tests.chaos.system import LEASE_SECONDS, System

TICK_SECONDS = 0.05
TELL_SECONDS = 5.0
# Buyers come during this part of the time, so that the last ones too are served under fire.
SELLING_PART = 0.75
QUIET_LOOKS = 3
TRAVELS_MAX = 3

console = Console(width=150, highlight=False)


class Run:
    """One run, phase by phase."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.began = time.monotonic()
        self.peak = 0
        self._told = 0.0
        self._look = 0.0
        self._seen: dict[str, int] = {}
        self.system = System(folder, options.seed)
        waits_seconds = min(20.0, options.minutes * 6)
        sales = [plan_sale(options.seed, number, waits_seconds) for number in range(options.sales)]
        self.shop = Shop(
            sales, self.system.variables["SMI_PUBLIC_URL"], self.system.site.url,
            options.minutes * 60 * SELLING_PART / options.sales,
        )  # fmt: skip
        self.monkey = Monkey(
            self.system.fleet, self.system.broker, self.system.database, random.Random(f"{options.seed}:monkey"),
            pause_seconds=options.pause, lease_seconds=LEASE_SECONDS,
        )  # fmt: skip
        self.openings: dict[str, list[Any]] = {}
        self.phases: dict[str, float] = {}

    def play(self) -> Evidence:
        """Chaos, calm, the future; returns what there is to judge."""
        system = self.system
        self._mark("set up")
        if not self.options.calm:
            system.providers.misbehave()
            system.live(partial(system.bank.run, pause_seconds=6.0), partial(system.admin.run, pause_seconds=1.5))
        self.shop.open()
        began, least = time.monotonic(), self.options.minutes * 60
        while (lasted := time.monotonic() - began) < least or (lasted < 2 * least and not self.shop.is_done()):
            self._tick("chaos", with_monkey=not self.options.calm)
        self.monkey.rest()
        self._mark("chaos")
        system.rest()
        system.fleet.start_all()
        system.providers.behave()
        self._settle("calm")
        self._open_all()
        self._mark("calm")
        for _ in range(TRAVELS_MAX):
            system.travel()
            is_quiet = self._settle("later")
            self._open_all()
            if not is_quiet or not system.unfinished():
                break
        self._mark("later")
        return self._evidence()

    def _settle(self, phase: str) -> bool:
        """Until nothing is due, nothing on its way, and neither bank nor admin has anything left to do.

        Returns: False when that takes too long.
        """
        until = time.monotonic() + self.options.patience * 60
        quiet = 0
        while quiet < QUIET_LOOKS:
            if time.monotonic() > until:
                console.print(f"[red]{phase}: not quiet after {self.options.patience:g} minutes[/]")
                return False
            self._tick(phase, with_monkey=False)
            if time.monotonic() < self._look:
                continue
            self._look = time.monotonic() + 1
            if not self.shop.is_done() or self._is_busy():
                quiet = 0
                continue
            self.system.bank.settle_everything()
            quiet = 0 if self.system.admin.tidy_up() or self.system.providers.posts_under_way() else quiet + 1
        return True

    def _is_busy(self) -> bool:
        effects, events = self.system.open_work()
        return bool(effects or events)

    def _tick(self, phase: str, *, with_monkey: bool) -> None:
        if with_monkey:
            self.monkey.tick()
        else:
            self.monkey.mend_servers()
        self.system.fleet.look_after()
        if time.monotonic() >= self._told:
            self._told = time.monotonic() + TELL_SECONDS
            self._tell(phase)
        time.sleep(TICK_SECONDS)

    def _tell(self, phase: str) -> None:
        work: object = "?"
        with suppress(psycopg.Error):
            self._seen = self.system.states()
            work = self.system.open_work()
        alive = sum(self._seen.get(name, 0) for name in ("awaiting_payment", "pending", "processing"))
        self.peak = max(self.peak, alive)
        states = ", ".join(f"{name} {count}" for name, count in sorted(self._seen.items()))
        console.print(
            f"[dim]{time.monotonic() - self.began:5.0f} s[/] [bold]{phase:5}[/] buyers {self.shop.counts['done']}"
            f"/{self.options.sales}; {states}; due {work}; acts {sum(self.monkey.acts.values())}"
        )

    def _open_all(self) -> None:
        links = [link for mail in read_mails(self.system.providers.where["mail_http"]) for link in mail.links]
        for link, opened in open_links(links).items():
            self.openings.setdefault(link, []).append(opened)

    def _evidence(self) -> Evidence:
        promises = {
            job_id: Promise(sale.email, (sale.size[0] * sale.factor, sale.size[1] * sale.factor), sale.colour)
            for sale in self.shop.sales
            for job_id in (sale.job_id, *sale.others)
            if job_id
        }
        providers = self.system.providers
        return Evidence(
            promises, providers.ledger("stripe"), providers.ledger("upsampler")["submissions"],
            read_mails(providers.where["mail_http"]), read_history(self.system.database.url, "wp_"), self.openings,
        )  # fmt: skip

    def _mark(self, phase: str) -> None:
        self.phases[phase] = round(time.monotonic() - self.began - sum(self.phases.values()), 1)

    def verdict(self, evidence: Evidence) -> bool:
        """Judge, and say everything; True when every promise was kept."""
        system, options = self.system, self.options
        findings = [*judge(evidence), *(Finding("buyer", "", text) for text in self.shop.faults)]
        sick = violations(system.settings, system.ahead)
        self._mark("judging")
        buyers = {**dict(sorted(self.shop.counts.items())), "most sales in flight at once": self.peak}
        groups: list[tuple[str, dict[str, Any]]] = [
            ("sales", {"planned": options.sales, **system.states()}),
            ("buyers", buyers),
            ("kills and freezes", dict(sorted(self.monkey.acts.items()))),
            ("processes that ended by themselves, and were started again", dict(system.fleet.died)),
            ("provider faults", dict(sorted(system.providers.struck.items()))),
            ("bank", dict(system.bank.acts)),
            ("admin", {**system.admin.acts, **{f"refused: {k}": n for k, n in system.admin.refused.items()}}),
            ("what it took", figures(system, evidence)),
            ("seconds", {**self.phases, "ahead in time at the end": system.ahead.total_seconds()}),
            ("verdict", {"doctor's violations": len(sick),
                         "checker's findings": len(findings)}),
        ]  # fmt: skip
        show(console, f"chaos, seed {options.seed}, {options.minutes:g} minutes", groups)
        for finding in findings:
            console.print(f"[red]{finding.rule}[/] {finding.job_id}: {finding.text}", soft_wrap=True)
        for text in sick:
            console.print(f"[red]doctor[/] {text}", soft_wrap=True)
        good = not findings and not sick
        if not good:
            tell(console, system, findings)
            console.print(system.last_lines(12), markup=False)
        if options.report:
            told = {
                "seed": options.seed, "minutes": options.minutes, "passed": good,
                "monkey": [[round(at, 2), act] for at, act in self.monkey.log],
                "findings": [[one.rule, one.job_id, one.text] for one in findings], "violations": sick,
                **dict(groups),
            }  # fmt: skip
            options.report.write_text(json.dumps(told, indent=1, default=str))
        return good


def main(arguments: list[str] | None = None) -> int:
    """Run once; returns the exit status."""
    options = _parser().parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="smi-chaos-"))
    console.print(
        f"[bold]chaos[/] seed {options.seed}, {options.sales} sales, {options.minutes:g} minutes; {folder}"
    )
    run: Run | None = None
    good = False
    try:
        run = Run(options, folder)
        good = run.verdict(run.play())
    finally:
        if run is not None:
            run.system.close()
        if good and not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            console.print(f"seed {options.seed}; everything is kept in {folder}")
    console.print("[green]every promise was kept[/]" if good else "[red]promises were broken[/]")
    return 0 if good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument(
        "--minutes",
        type=float,
        default=2.0,
        help="of chaos, or until all buyers are served, at most twice as long; settling and judging come after",
    )
    parser.add_argument("--sales", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of every random decision")
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two kills, on average")
    parser.add_argument("--patience", type=float, default=6.0, help="minutes until it must be quiet")
    parser.add_argument("--report", type=Path, help="a JSON file for the figures")
    parser.add_argument("--keep", action="store_true", help="keep the folder even when all is well")
    parser.add_argument("--calm", action="store_true", help="no faults and no kills: how fast is it?")
    return parser


if __name__ == "__main__":
    sys.exit(main())
