"""Owns the simulation of the sale: buyers, admins and the last judgement in the simulated shop.

Called by cli/simulate.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from smi_workflow.engine.invariants import Violation
from smi_workflow.simulation.admins import Admins
from smi_workflow.simulation.books import judge
from smi_workflow.simulation.buyers import Buyers
from smi_workflow.simulation.shop import Shop


class Sale(Shop):
    """The shop with everybody who comes to it."""

    def begin(self, count: int) -> None:
        """Let so many buyers come, and admins act among them."""
        Buyers(self, count).come()
        Admins(self, count).act()

    def verdict(self) -> Iterator[Violation]:
        """Compare our books with the providers'."""
        yield from judge(self.app, self.stripe.books, self.mailer.sent, self.upsampler.works, self.receivers.taken)
