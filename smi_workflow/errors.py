"""Owns every exception of the package: one root, three families. Called by everyone.

Retry policy reads the class, never the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class SmiError(Exception):
    """The root: catch this to catch everything that this package raises on purpose."""


class ConfigError(SmiError):
    """A setting or a declaration is wrong; `problems` lists all of them together."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in problems)]))


class DatabaseAway(ConfigError):
    """The database's server does not answer, or refuses us: it may be back, or a setting may be wrong."""


class InvalidInput(SmiError):
    """What a caller handed in cannot be used; `field` names it."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}")


class BadSignature(SmiError):
    """A message or a link does not carry the signature of who it claims to come from."""


class EngineError(SmiError):
    """The engine refused, and nothing was changed."""


class UnknownSubject(EngineError):
    """No such row."""

    def __init__(self, workflow: str, subject_id: object) -> None:
        self.workflow = workflow
        self.subject_id = subject_id
        super().__init__(f"there is no {workflow} {subject_id}")


class UnknownJob(UnknownSubject):
    """No job has this id."""

    def __init__(self, job_id: object) -> None:
        super().__init__("job", job_id)


class TransitionNotAllowed(EngineError):
    """The state has no such trigger."""

    def __init__(
        self, workflow: str, subject_id: object, state: str, trigger: str, allowed: Sequence[str]
    ) -> None:
        self.workflow = workflow
        self.subject_id = subject_id
        self.state = state
        self.trigger = trigger
        self.allowed = tuple(allowed)
        options = ", ".join(allowed) if allowed else "nothing"
        super().__init__(
            f"{workflow} {subject_id} is {state}: '{trigger}' is not possible there (possible: {options})"
        )


class UnknownState(EngineError):
    """The row is in a state that this release does not declare: a newer one, or an older one, put it there."""

    def __init__(self, workflow: str, subject_id: object, state: str) -> None:
        self.workflow = workflow
        self.subject_id = subject_id
        self.state = state
        super().__init__(f"{workflow} {subject_id} is {state}, a state that this release does not know")


class UnknownTrigger(TransitionNotAllowed):
    """The workflow declares no such trigger at all."""


class GuardRefused(EngineError):
    """The trigger fits the state, but a guard said no; `guard` names it and `reason` says why."""

    def __init__(
        self, workflow: str, subject_id: object, state: str, trigger: str, guard: str, reason: str
    ) -> None:
        self.workflow = workflow
        self.subject_id = subject_id
        self.state = state
        self.trigger = trigger
        self.guard = guard
        self.reason = reason
        super().__init__(f"{workflow} {subject_id} is {state}: '{trigger}' refused by {guard}: {reason}")


class StatusNotReachable(EngineError):
    """No trigger leads there as things are; `refusals` says of each that would why not. An override is left."""

    def __init__(self, job_id: object, status: str, wanted: str, refusals: Mapping[str, str]) -> None:
        self.job_id = job_id
        self.status = status
        self.wanted = wanted
        self.refusals = dict(refusals)
        why = "; ".join(refusals.values()) or f"nothing leads there from {status}"
        super().__init__(
            f"job {job_id} is {status} and cannot become {wanted} ({why});"
            " an admin may fire 'override', with a reason"
        )


class TransitionConflict(EngineError):
    """Someone else holds or has moved the row (lock time-out, stale version): try again."""


class StaleState(EngineError):
    """The caller expected another state than the row has: look again before acting."""

    def __init__(self, workflow: str, subject_id: object, expected: str, state: str) -> None:
        self.workflow = workflow
        self.subject_id = subject_id
        self.expected = expected
        self.state = state
        super().__init__(f"{workflow} {subject_id} was expected to be {expected}, but is {state} by now")


class StaleLease(EngineError):
    """A worker came back after its lease had lapsed: its result is refused and recorded."""

    def __init__(self, effect_id: str) -> None:
        self.effect_id = effect_id
        super().__init__(f"the lease on effect {effect_id} has lapsed or belongs to another worker")


class ServiceError(SmiError):
    """A provider did not do what was asked; `service` names it."""

    def __init__(self, service: str, message: str, *, code: str | None = None, status: int | None = None) -> None:
        self.service = service
        self.code = code
        self.status = status
        super().__init__(f"{service}: {message}")


class ServiceUnavailable(ServiceError):
    """Transient, or the outcome is unknown: the same call with the same key may be made again.

    `retry_after_seconds` is what the provider asked for, if it did; `outcome_unknown` is true when
    the request may have been carried out (a time-out, a reset after sending).
    """

    def __init__(
        self,
        service: str,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        retry_after_seconds: float | None = None,
        outcome_unknown: bool = False,
    ) -> None:
        self.retry_after_seconds = retry_after_seconds
        self.outcome_unknown = outcome_unknown
        super().__init__(service, message, code=code, status=status)


class ServiceRefused(ServiceError):
    """Final: asking again would give the same answer."""
