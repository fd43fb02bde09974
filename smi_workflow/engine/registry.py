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
        self._converters: dict[type[Model], tuple[list[str], list[Any]]] = {}

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

        return self.first(("read", flow.name, lock), model, build, {"key": key})

    def first(
        self, key: object, model: type[M], build: Callable[[], Any], values: Mapping[str, object]
    ) -> M | None:
        """The first row of such a query, or None; see `select`."""
        rows = self.select(key, model, build, values)
        return rows[0] if rows else None

    def select(
        self, key: object, model: type[M], build: Callable[[], Any], values: Mapping[str, object]
    ) -> list[M]:
        """Rows of a bound model by a compiled query over all its columns.

        Args:
            key: names the query; it is built on first use.
            build: e.g. `lambda: model.select().where(model.name == Slot("name"))`.
        """
        names, converters = self._columns(model)
        return rows_as(model, names, converters, self.statement(key, build).run(values))

    def insert(self, row: Model) -> None:
        """Write a new row of a bound model, by a statement compiled once for its columns."""
        model, fields = type(row), row._meta.fields
        names = tuple(sorted(row.__data__))
        values = {name: fields[name].db_value(row.__data__[name]) for name in names}

        def build() -> Any:
            return model.insert({name: Slot(name) for name in names})

        self.statement(("insert", model, names), build).run(values)

    def _columns(self, model: type[Model]) -> tuple[list[str], list[Any]]:
        found = self._converters.get(model)
        if found is None:
            fields = model._meta.sorted_fields
            plain = {"VARCHAR", "TEXT", "LONGTEXT", "INT", "BIGINT", "AUTO", "BIGAUTO"}
            names = [item.name for item in fields]
            found = names, [None if item.field_type in plain else item.python_value for item in fields]
            self._converters[model] = found
        return found
