"""Owns the simulated broker: it loses, repeats, reorders and forgets. Called by simulation.py."""

from __future__ import annotations

from dataclasses import dataclass

from smi_workflow.simulation.stage import Stage


@dataclass(frozen=True, slots=True)
class Message:
    """One id on its way to whoever takes it up."""

    id: str
    actor: str
    queue: str


class Broker:
    """Keeps messages until somebody takes them, in no order."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.waiting: list[Message] = []
        self.rung = 0

    def ring(self, message_id: str, actor: str, queue: str) -> None:
        """The doorbell."""
        self._stage.check_alive()
        self.rung += 1
        faults = self._stage.faults
        if faults.strikes("lose"):
            self._stage.tell(f"message {actor} {message_id} is lost")
            return
        self.waiting.append(Message(message_id, actor, queue))
        if faults.strikes("duplicate"):
            self.waiting.append(Message(message_id, actor, queue))

    def take(self) -> Message:
        """Any of the waiting messages."""
        index = self._stage.random.randrange(len(self.waiting))
        self.waiting[index], self.waiting[-1] = self.waiting[-1], self.waiting[index]
        return self.waiting.pop()

    def give_back(self, message: Message) -> None:
        """Its worker died before it was acknowledged: it comes again, or is gone with the worker."""
        if self._stage.random.random() < 0.5:
            self.waiting.append(message)

    def flush(self) -> None:
        """Forget everything."""
        self._stage.tell(f"the broker forgets {len(self.waiting)} messages")
        self.waiting.clear()
