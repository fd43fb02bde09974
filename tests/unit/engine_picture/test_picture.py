"""Owns the tests of what a workflow's pictures say. Called by pytest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from smi_workflow.engine.declaration import ANYWHERE, Case, Effect, Move, State
from smi_workflow.engine.picture import mermaid, svg
from smi_workflow.engine.workflow import Workflow
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.jobs.refunds import REFUND
from tests.support.loans import FINE, LOAN, Loan

FLOWS = pytest.mark.parametrize("flow", [JOB, REFUND, LOAN, FINE], ids=lambda flow: flow.name)
SVG = "{http://www.w3.org/2000/svg}"
RING = Effect("ring", queue="q", harmless="it only rings")


def refuses(case: Case[Loan]) -> str | None:
    return "no"


def small(*, meaning: str = "here", source: str | tuple[str, ...] = "one", to: str | None = "two") -> Workflow:
    """Two states and one move, of which a test chooses a part."""
    return Workflow(
        name="small",
        model=Loan,
        key="loan_id",
        state_column="state",
        initial="one",
        states=(State("one", meaning), State("two", "there")),
        moves=(Move("go", "one", "two"), Move("extra", source, to, guards=(refuses,), owes=(RING.now(),))),
    )


def words(picture: str) -> list[str]:
    """Every text of a picture, the hidden description left out."""
    return ["".join(text.itertext()) for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def lines(picture: str) -> Iterator[ElementTree.Element]:
    return (path for path in ElementTree.fromstring(picture).iter(f"{SVG}path") if path.get("class") == "line")


def declared_edges(flow: Workflow) -> set[tuple[str, str]]:
    return {
        (str(source), str(move.to))
        for move in flow.moves
        if move.source != ANYWHERE and move.to is not None
        for source in move.sources(flow.states)
    }


def luminance(colour: str) -> float:
    """How bright a CSS colour is, 0 to 1, as contrast is reckoned by WCAG."""
    digits = colour.lstrip("#")
    pairs = [digit * 2 for digit in digits] if len(digits) == 3 else [digits[at : at + 2] for at in (0, 2, 4)]
    parts = [int(pair, 16) / 255 for pair in pairs]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@FLOWS
def test_both_pictures_name_every_state_and_trigger(flow: Workflow) -> None:
    said = re.findall(r"\w+", " ".join(words(svg(flow))))
    written = re.findall(r"\w+", mermaid(flow))
    for name in (*(str(state.name) for state in flow.states), *flow.triggers(), flow.started_by):
        assert name in said
        assert name in written


@FLOWS
def test_the_svg_tells_every_meaning_and_effect_of_a_state(flow: Workflow) -> None:
    said = " ".join(words(svg(flow)))
    for state in flow.states:
        assert state.meaning in said
        for owed in state.owes:
            assert owed.effect.name in said


@FLOWS
def test_mermaid_draws_each_declared_edge_once_and_no_other(flow: Workflow) -> None:
    drawn = re.findall(r"^    (\w+) --> (\w+) : ", mermaid(flow), flags=re.MULTILINE)
    assert sorted(drawn) == sorted(declared_edges(flow))


@FLOWS
def test_the_svg_draws_each_declared_edge_with_its_triggers(flow: Workflow) -> None:
    # One more leads into the first state.
    assert len(list(lines(svg(flow)))) == len(declared_edges(flow)) + 1
    labels = [
        "".join(text.itertext())
        for text in ElementTree.fromstring(svg(flow)).iter(f"{SVG}text")
        if text.get("class") == "label mono"
    ]
    wanted = [
        trigger
        for source, target in declared_edges(flow)
        for trigger in {
            move.trigger
            for move in flow.moves
            if move.source != ANYWHERE and move.to == target and source in move.sources(flow.states)
        }
    ]
    assert sorted(labels) == sorted([*wanted, flow.started_by])


@FLOWS
def test_the_same_declaration_gives_the_same_bytes(flow: Workflow) -> None:
    again = Workflow(
        flow.name, flow.model, flow.key, flow.state_column, flow.initial, flow.states, flow.moves, flow.started_by,
        start_hook=flow.start_hook, announces=flow.announces,
    )  # fmt: skip
    assert svg(again) == svg(flow)
    assert mermaid(again) == mermaid(flow)


@FLOWS
def test_the_svg_stands_alone(flow: Workflow) -> None:
    root = ElementTree.fromstring(svg(flow))
    assert root.tag == f"{SVG}svg"
    assert {node.tag.removeprefix(SVG) for node in root.iter()} <= {
        "svg", "title", "desc", "style", "g", "rect", "circle", "path", "text",
    }  # fmt: skip
    assert "http" not in svg(flow).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"url\(|@import|@font-face", svg(flow))


def test_screen_readers_are_told_what_the_picture_shows() -> None:
    root = ElementTree.fromstring(svg(LOAN))
    named = {node.get("id"): "".join(node.itertext()) for node in root.iter() if node.get("id")}
    title, description = (named[name] for name in str(root.get("aria-labelledby")).split())
    assert title == "The life of a loan"
    assert "reserved: waits for the book" in description
    assert "reserved to lent by lend" in description
    assert "In every state: stays: waive" in description


def test_text_is_legible_in_light_and_in_dark() -> None:
    style = svg(JOB).split("<style>")[1].split("</style>")[0]
    light, dark = style.split("@media (prefers-color-scheme:dark)")
    for scheme in (light, dark):
        colours = dict(re.findall(r"\.smi-flow \.([\w .]+)\{fill:(#\w+)", scheme))
        for text in ("ink", "soft"):
            for ground in ("page", "panel", "main .box", "goal .box", "aside .box"):
                low, high = sorted(luminance(colours[name]) for name in (text, ground))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


@pytest.mark.parametrize("text", ["a <b> & 'c' \"d\"", "]]> </text> <script>", "x; y: z # %% end note"])
def test_text_is_escaped(text: str) -> None:
    assert " ".join(text.split()) in " ".join(words(svg(small(meaning=text))))
    body = mermaid(small(meaning=text)).splitlines()
    told = next(line for line in body if line.startswith("    one : ") and line != "    one : one")
    assert not re.search(r'[<>"&;:]', re.sub(r"#\d+;", "", told.removeprefix("    one : ")))
    decoded = re.sub(r"#(\d+);", lambda found: chr(int(found[1])), told.removeprefix("    one : "))
    assert decoded == text


def test_a_move_of_every_state_is_told_once_and_not_drawn() -> None:
    flow = small(source=ANYWHERE)
    assert len(list(lines(svg(flow)))) == 2
    assert "extra → two [refuses]" in words(svg(flow))
    assert "        extra → two [refuses]" in mermaid(flow).splitlines()


def test_moves_of_every_state_to_every_state_are_told_as_one() -> None:
    flow = small()
    everywhere = tuple(Move("jump", ANYWHERE, state.name) for state in flow.states)
    jumping = Workflow(
        "small", flow.model, flow.key, flow.state_column, flow.initial, flow.states, (*flow.moves, *everywhere)
    )
    assert [text for text in words(svg(jumping)) if "jump" in text] == ["jump → the named state"]


def test_a_trigger_that_stays_is_told_in_its_state() -> None:
    flow = small(to=None)
    assert len(list(lines(svg(flow)))) == 2
    assert {"extra", "ring"} <= set(words(svg(flow)))
    assert "    one : stays#58; extra" in mermaid(flow).splitlines()


def test_a_loop_back_into_the_same_state_is_drawn() -> None:
    assert "    one --> one : extra" in mermaid(small(to="one")).splitlines()
    assert len(list(lines(svg(small(to="one"))))) == 3


def test_words_of_mermaids_own_do_not_become_names_of_states() -> None:
    flow = Workflow(
        name="words",
        model=Loan,
        key="loan_id",
        state_column="state",
        initial="state",
        states=(State("state", "first"), State("a-b", "next"), State("a_b", "next"), State("end", "last")),
        moves=tuple(Move("go", *pair) for pair in pairwise(("state", "a-b", "a_b", "end"))),
    )
    edges = re.findall(r"^    (\w+) --> (\w+) : ", mermaid(flow), flags=re.MULTILINE)
    assert edges == [("state_", "a_b"), ("a_b", "a_b_"), ("a_b_", "end_")]
    assert "    end_ : end" in mermaid(flow).splitlines()


def test_numbers_stand_in_the_states_and_empty_ones_fade() -> None:
    picture = svg(LOAN, lit={"lent": 1204})
    assert words(picture).count("1204") == 1
    assert words(picture).count("0") == 3
    fading = [
        node for node in ElementTree.fromstring(picture).iter(f"{SVG}g") if "quiet" in str(node.get("class"))
    ]
    assert len(fading) == 3
    assert "quiet" not in svg(LOAN).split("</style>")[1]


def test_the_present_state_is_marked() -> None:
    root = ElementTree.fromstring(svg(LOAN, current="lent"))
    marked = [
        group
        for group in root.iter(f"{SVG}g")
        if any(child.get("class") == "halo" for child in group.findall(f"{SVG}rect"))
    ]
    assert ["".join(group.find(f"{SVG}text").itertext()) for group in marked] == ["lent"]  # type: ignore[union-attr]
