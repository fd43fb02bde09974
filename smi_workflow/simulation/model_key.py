"""Owns what tells two states of the model apart. Called by model_explore.py."""

from __future__ import annotations

from smi_workflow.simulation.model import Scene


def key_of(scene: Scene) -> tuple[object, ...]:
    """What tells this scene from others: no ids, no times but what lies ahead, no order of what is owed."""
    rows = []
    visits: dict[tuple[str, str], int] = {}
    for flow, key, row in scene.subjects():
        visits[(flow.name, key)] = row.visit
        plain, instants = row.frozen()
        rows.append((flow.name, key, plain, tuple(value > scene.now for value in instants)))
    for model in scene.plan.scenario.tables:
        rows += [("", "", row.frozen()[0], ()) for row in scene.tables[model].values()]
    kept, idle = scene.plan.scenario.kept, scene.plan.scenario.idle
    effects = sorted(
        (
            e.effect.name, e.workflow, e.subject_id, visits.get((e.workflow, e.subject_id)) == e.visit,
            e.inputs, e.doubts, e.waits, e.state, e.id if e.effect.name in kept else "",
            repr(e.outcome) if e.outcome is not None else "",
        )
        for e in scene.effects
        if e.effect.name not in idle
    )  # fmt: skip
    spent = tuple(sorted(scene.spent.items()))
    outside = tuple(scene.outside.values())
    return (tuple(rows), tuple(effects), tuple(sorted(scene.events)), outside, spent)
