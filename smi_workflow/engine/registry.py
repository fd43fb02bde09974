"""Owns the parts of one engine and its compiled statements. Called by unit.py and fire.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from peewee import Database, Model

from smi_workflow.engine.clock import Chance
from smi_workflow.engine.database import Slot, Statement, is_sqlite, rows_as
from smi_workflow.engine.tables import Tables
from smi_workflow.engine.workflow import Workflow
from smi_workflow.errors import EngineError

M = TypeVar("M", bound=Model)


class Registry:
    """The workflows and tables of one engine, with their statements compiled once."""

    def __init__(
        self,
        database: Database,
        tables: Tables,
        workflows: Mapping[str, Workflow],
        models: Mapping[type[Model], type[Model]],
        chance: Chance,
        policy: object = None,
    ) -> None:
        self.policy = policy
        self.database = database
        self.tables = tables
        self.workflows = workflows
        self.models = models
        self.chance = chance
        self._statements: dict[object, Statement] = {}
        self._converters: dict[str, tuple[list[str], list[Any]]] = {}

    def workflow(self, name: str) -> Workflow:
        """The declared workflow of this name."""
        if name not in self.workflows:
            raise EngineError(f"there is no workflow {name}; there are: {', '.join(self.workflows)}")
        return self.workflows[name]

    def bound(self, model: type[M]) -> type[M]:
        """The declared model, bound to this engine's database."""
        return self.models[model]  # type: ignore[return-value]  # bind() keeps the type

    def statement(self, key: object, build: Callable[[], Any]) -> Statement:
        """The compiled statement of this key; built on first use."""
        found = self._statements.get(key)
        if found is None:
            found = self._statements[key] = Statement(self.database, build())
        return found

    def read(self, flow: Workflow, key: str, *, lock: bool = False) -> Any:
        """Load a subject's row, under its lock if asked; None when there is none."""
        model = self.bound(flow.model)

        def build() -> Any:
            query = model.select().where(getattr(model, flow.key) == Slot("key"))
            return query.for_update() if lock and not is_sqlite(self.database) else query

        names, converters = self._columns(flow)
        cursor = self.statement(("read", flow.name, lock), build).run({"key": key})
        rows = rows_as(model, names, converters, cursor)
        return rows[0] if rows else None

    def _columns(self, flow: Workflow) -> tuple[list[str], list[Any]]:
        found = self._converters.get(flow.name)
        if found is None:
            fields = self.bound(flow.model)._meta.sorted_fields
            plain = {"VARCHAR", "TEXT", "LONGTEXT", "INT", "BIGINT", "AUTO", "BIGAUTO"}
            names = [item.name for item in fields]
            found = names, [None if item.field_type in plain else item.python_value for item in fields]
            self._converters[flow.name] = found
        return found
