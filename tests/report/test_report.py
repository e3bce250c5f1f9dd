"""The report as plain data and as a file, without a browser."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cai.errors import SpecError
from cai.figures.evaluation import parse_evaluation
from cai.plan import Plan, Step, inputs_of
from cai.report import drawing, samples
from cai.report.graph import GAP_X, HEIGHT, WIDTH, graph_of, layered, ordered
from cai.report.learning import active_principles, thinned
from cai.report.measures import axes_of
from cai.report.model import Figure, Panel, Point, ReportPage, Section, Series, Table, Text, numbers_table
from cai.report.page import build, visible_controls, write_report
from cai.report.runs import labelled_runs
from cai.run.finished import Finished
from tests.support.report_runs import HOSTILE, MODELS, STEPS, evaluation, figure, make_run, principles


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(run: Finished, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_report([run], tmp_path_factory.mktemp("page") / "report.html")
    return path.read_text(encoding="utf-8")


def figures(report: ReportPage) -> dict[str, Figure]:
    return {b.id: b for s in report.sections for b in s.blocks if isinstance(b, Figure)}


def missing(report: ReportPage) -> str:
    found = [b for s in report.sections for b in s.blocks if isinstance(b, Text) and b.style == "missing"]
    return "\n".join(line for block in found for line in block.lines)


def rows_in(html: str) -> list[list[Any]]:
    chunks = re.findall(r'<script type="application/octet-stream" class="rows">([^<]*)</script>', html)
    return [row for chunk in chunks for row in unpacked(chunk)]


def unpacked(chunk: str) -> list[list[Any]]:
    return json.loads(gzip.decompress(base64.b64decode(chunk)))


class Outline(HTMLParser):
    """Ids, headings, elements with their attributes, and whether tags are balanced."""

    VOID = frozenset({"meta", "link", "input", "br", "img", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.crossed.append(tag)


def test_a_finished_run_gives_every_section_and_the_papers_figures(run: Finished) -> None:
    report, looked = build([run])
    wanted = ["summary", "plan", "constitution", "evaluation", "training", "judges", "ledger"]
    assert [s.id for s in report.sections] == wanted
    drawn = {"frontier", "wins-0", "refusals", "adherence-0", "rounds", "change-by-principle", "rl", "sft", "reward"}
    assert drawn | {"calibration", "confidence", "accuracy", "topics-0"} == set(figures(report))
    assert looked.index.included == looked.index.there == 240
    assert not missing(report)


def test_the_frontier_is_elo_on_both_axes_with_intervals(run: Finished) -> None:
    frontier = figures(build([run])[0])["frontier"]
    (series,) = frontier.panels[0].series
    assert [p.label for p in series.points] == list(MODELS)
    assert series.points[1] == Point(100.0, 100.0, 60.0, 140.0, 60.0, 140.0, "sl-cai")
    assert "Elo" in frontier.panels[0].x_label
    assert "sl-cai at 100 and 100" in frontier.description


def test_an_older_evaluation_is_drawn_by_mean_reward_and_says_so(tmp_path: Path) -> None:
    report, _ = build([make_run(tmp_path, report=evaluation(new=False))])
    frontier = figures(report)["frontier"]
    assert "mean reward" in frontier.panels[0].y_label
    assert "no Elo" in frontier.note
    assert "older version" in missing(report)
    assert not {"rounds", "adherence-0"} & set(figures(report))


def test_a_run_without_rewards_says_so_and_still_shows_refusals(tmp_path: Path) -> None:
    report, _ = build([make_run(tmp_path, report=evaluation(scored=False))])
    assert "without a reward model" in missing(report)
    assert "refusals" in figures(report)
    assert "frontier" not in figures(report)


def test_with_prompts_for_one_axis_the_models_are_drawn_on_that_one(tmp_path: Path) -> None:
    told = evaluation()
    del told["sets"]["helpful"], told["elo"]["helpfulness"]
    told["axes"]["helpfulness"] = []
    found = figures(build([make_run(tmp_path, report=told)])[0])
    assert "frontier" not in found
    assert [panel.title for panel in found["axes"].panels] == ["harmlessness"]
    assert [p.x for p in found["axes"].panels[0].series[0].points] == list(MODELS)


def test_further_axes_of_an_experiment_are_drawn_beside_the_frontier(tmp_path: Path) -> None:
    told = evaluation()
    told["elo"]["all"] = told["elo"]["helpfulness"]
    found = figures(build([make_run(tmp_path, report=told)])[0])
    assert "frontier" in found
    assert [panel.title for panel in found["axes"].panels] == ["all"]


def test_a_model_that_wins_always_has_a_place_without_an_interval(tmp_path: Path) -> None:
    told = evaluation()
    told["elo"]["harmlessness"]["models"]["rl-cai"] |= {"low": None, "high": None}
    run = make_run(tmp_path, report=told, kinds=("fetch", "evaluate"))
    last = figures(build([run])[0])["frontier"].panels[0].series[0].points[-1]
    assert (last.y, last.low, last.x_low) == (200.0, None, 160.0)
    write_report([run], tmp_path / "r.html")


def test_a_run_that_never_ended_tells_what_is_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path, without=("reward", "rl", "evaluate"), record=False)
    report, _ = build([run])
    assert "the store does not have reward, rl, evaluate" in missing(report)
    assert "There is no evaluation to draw from" in missing(report)
    facts = next(b for b in report.sections[0].blocks if isinstance(b, Table))
    assert facts.rows[0][2] == "not started"


def test_a_run_with_nothing_in_the_store_gives_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, without=[name for name, *_ in STEPS], record=False)
    page = write_report([run], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "There are no rows to look at" in page
    assert Outline(page).crossed == []


def test_an_experiment_without_an_evaluation_says_that_nothing_was_measured(tmp_path: Path) -> None:
    report, _ = build([make_run(tmp_path, kinds=("fetch", "read", "respond", "revise"))])
    assert "no stage of kind 'evaluate'" in missing(report)
    assert [s.id for s in report.sections if s.id == "judges"] == []


def test_a_damaged_evaluation_is_told_and_stops_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.artifacts["evaluate"].path / "evaluation.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in missing(build([run])[0])


def test_several_runs_are_compared_and_their_differences_told(tmp_path: Path) -> None:
    runs = [make_run(tmp_path), make_run(tmp_path, seed=1, rules=8, report=evaluation(shift=0.5))]
    report, looked = build(runs)
    found = figures(report)
    assert [s.label for s in found["frontier"].panels[0].series] == ["small, seed 0", "small, seed 1"]
    differences = next(s for s in report.sections if s.id == "differences")
    table = next(b for b in differences.blocks if isinstance(b, Table))
    assert any(row[0] == "revise" and "rules 4 -> 8" in row[1].replace(":", "") for row in table.rows)
    assert "small, seed 1: revise" in looked.index.sources
    assert len([b for s in report.sections if s.id == "plan" for b in s.blocks if b.kind == "graph"]) == 2


def test_runs_with_different_numbers_of_principles_give_the_papers_figure_by_number(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, f"n{n}", rules=n) for n in (4, 1, 2)]
    assert [active_principles(run) for run in labelled_runs(runs)] == [4, 1, 2]
    by_number = figures(build(runs)[0])["by-principles"]
    assert [[p.x for p in panel.series[0].points] for panel in by_number.panels] == [[1.0, 2.0, 4.0]] * 2
    assert "not on one scale" in by_number.note
    assert "by-principles" not in figures(build(runs[:1])[0])


def test_artifacts_that_runs_share_are_browsed_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name) for name in ("one", "two")]
    assert build(runs)[1].index.there == 240
    assert build(runs)[1].index.sources[0] == "one: evaluate (and 1 more)"


def test_axes_of_an_old_evaluation_come_from_which_sets_are_harmless() -> None:
    told = parse_evaluation(evaluation(new=False))
    assert axes_of(told) == {"helpfulness": ["helpful"], "harmlessness": ["red_team"]}


def test_the_ledger_and_the_draws_of_principles_are_counted(run: Finished) -> None:
    report, looked = build([run])
    ledger = next(b for s in report.sections if s.id == "ledger" for b in s.blocks if isinstance(b, Table))
    assert ("revise", "42", "40", "2", "unparsed 2") in ledger.rows
    assert looked.drawn == {
        "revise": dict.fromkeys((f"rule-{i}" for i in range(4)), 20),
        "judge": looked.drawn["judge"],
    }
    assert sum(looked.drawn["judge"].values()) == 40


def test_where_every_round_comes_out_each_draw_is_counted_once() -> None:
    turns = [{"round": r, "principle": f"p{r}", "critique": "c", "revision": "r"} for r in (1, 2)]
    message = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    rows = [
        {"id": f"x/{n}", "messages": message, "meta": {"response": "a", "rounds": turns[:n]}, "topic": ""}
        for n in (1, 2)
    ]
    assert [samples.READERS["revise"][1](row).draws for row in rows] == [("p1",), ("p2",)]


def test_a_revision_is_compared_with_the_text_before_it(html: str) -> None:
    row = next(row for row in rows_in(html) if len(row[7]) == 5)
    assert [(part[0], part[4]) for part in row[7]] == [
        ("first answer", -1),
        ("critique", -1),
        ("revision", 0),
        ("critique", -1),
        ("revision", 2),
    ]


def test_quotas_give_small_stages_whole_and_share_the_rest() -> None:
    assert samples.quotas([10, 1000, 500], 210) == [10, 100, 100]
    assert samples.quotas([10, 20], 100) == [10, 20]
    assert samples.quotas([5, 5], 0) == [0, 0]


def test_with_fewer_rows_the_same_prompts_are_taken_from_every_stage(run: Finished) -> None:
    looked = samples.survey(labelled_runs([run]), 60)
    rows = [row for chunk in samples.packed(looked) for row in unpacked(chunk)]
    assert len(rows) == 60
    by_source: dict[int, set[str]] = {}
    for row in rows:
        by_source.setdefault(row[0], set()).add(row[1].split("/")[0])
    assert len(by_source) == 6
    assert len(set.union(*by_source.values())) == 10
    assert "60 of 240 rows are in this file" in looked.index.notes[0]


def test_rows_are_taken_by_id_whatever_their_order(run: Finished) -> None:
    few = {s.id for s in _taken(run, 60)}
    more = {s.id for s in _taken(run, 120)}
    assert few < more


def _taken(run: Finished, limit: int) -> Iterator[samples.SampleRow]:
    for source in samples.survey(labelled_runs([run]), limit).sources:
        yield from (s for s in source.samples() if samples.place_of(s.id) <= source.bound)


def test_lines_that_are_no_rows_are_counted_and_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with (run.artifacts["judge"].path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "x"}\n')
    assert "1 lines of judge could not be read." in build([run])[1].index.notes


def test_the_same_run_gives_the_same_bytes(run: Finished, html: str, tmp_path: Path) -> None:
    assert write_report([run], tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_hostile_text_is_text_in_the_file(html: str) -> None:
    assert "<script>window.hit" not in html
    assert "<img" not in html
    assert "<svg onload" not in html
    assert not re.search("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)
    # The rows travel whole: they are base64 here, and set as text there.
    assert set(HOSTILE) <= {row[5] for row in rows_in(html)}


def test_control_characters_are_shown() -> None:
    assert visible_controls("a\u202eb\0c\ud83d\nd\te") == "a[U+202E]b[U+0000]c[U+D83D]\nd\te"
    assert visible_controls("\U0001f600 \u05d0\u200d") == "\U0001f600 \u05d0\u200d"
    assert visible_controls(3) == 3


def test_the_page_is_well_formed_and_accessible_by_its_markup(html: str) -> None:
    found = Outline(html)
    assert found.crossed == []
    assert found.open == []
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for _, attributes in found.elements:
        for name in ("aria-labelledby", "aria-describedby", "aria-controls"):
            assert set((attributes.get(name) or "").split()) <= set(ids)
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert all(name.strip() for name in attributes)
    pictures = [a for tag, a in found.elements if tag == "svg" and a.get("role") == "img"]
    assert len(pictures) >= 15
    assert all(a["aria-labelledby"] and a["aria-describedby"] for a in pictures)
    links = [a["href"] or "" for tag, a in found.elements if tag == "a"]
    assert all(link.startswith("#") and link[1:] in ids for link in links)


def test_nothing_in_the_page_names_another_place(html: str) -> None:
    outside = set(re.findall(r'(?:src|href|url\()\s*=?\s*["\']?((?:https?:)?//[^"\' )]+)', html))
    assert outside == set()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
    assert "unsafe" not in policy[1]


def test_a_panel_follows_the_pages_colours_and_reads_names_as_text() -> None:
    series = Series("$x^2$", (Point("<b>&$\\frac", 0.5, 0.4, 0.6), Point("\u202e\0", 0.2)), 2)
    told = Figure("f", "<i>T</i>", "", (Panel("dots", (series,), percent=True),), numbers_table(("a",), ()))
    styles: drawing.Styles = {}
    svg = drawing.draw(told, 0, styles)
    assert "&lt;b&gt;&amp;$\\frac" in svg
    assert "&lt;i&gt;T&lt;/i&gt;" in svg
    assert any("var(--c2)" in declared for declared in styles.values())
    assert not re.search("#[0-9a-f]{6}", "".join(styles.values()))
    assert "style=" not in svg
    assert drawing.draw(told, 0, {}) == svg


def test_the_graph_puts_every_step_below_what_it_reads_without_overlaps(run: Finished) -> None:
    plan = run.plan
    depth = layered(plan)
    assert all(depth[name] < depth[step.name] for step in plan.steps for name in step.needs())
    graph = graph_of(labelled_runs([run])[0], "g")
    assert len(graph.nodes) == len(plan.steps)
    assert len(graph.edges) == sum(len(step.needs()) for step in plan.steps)
    by_row: dict[float, list[float]] = {}
    for node in graph.nodes:
        by_row.setdefault(node.y, []).append(node.x)
        assert node.x >= 0
        assert node.x + WIDTH <= graph.width
        assert node.y + HEIGHT <= graph.height
    for xs in by_row.values():
        xs.sort()
        assert all(other - one >= WIDTH + GAP_X - 1e-6 for one, other in pairwise(xs))


def test_the_order_in_layers_uncrosses_edges_that_need_not_cross() -> None:
    steps = [Step(name, "read", "prompts", name * 64, 0) for name in "ab"]
    steps += [
        Step("c", "sft", "model", "c" * 64, 0, inputs_of({"data": "b"})),
        Step("d", "sft", "model", "d" * 64, 0, inputs_of({"data": "a"})),
    ]
    layers, _ = ordered(Plan("x", 0, {}, tuple(steps)))
    below = {"a": "d", "b": "c"}
    assert [below[name] for name, _ in layers[0]] == [name for name, _ in layers[1]]


def test_what_a_step_is_made_of_and_why_it_ran_is_told(tmp_path: Path) -> None:
    make_run(tmp_path)
    again = make_run(tmp_path, seed=1, rules=8)
    node = next(n for n in graph_of(labelled_runs([again])[0], "g").nodes if n.name == "revise")
    told = {d.term: d.text for d in node.details}
    assert told["state"] == "made in this run"
    assert told["rows out"] == "40"
    assert told["key"] == again.plan.step("revise").key
    assert "rules" in told["since 2026-01-01T00-00-00Z"]
    assert '"seed": 1' in told["ingredients of the key"]


def test_runs_are_named_as_shortly_as_tells_them_apart(tmp_path: Path) -> None:
    one, two, three = make_run(tmp_path, "a"), make_run(tmp_path, "b"), make_run(tmp_path, "a", seed=1)
    assert [r.label for r in labelled_runs([one, two])] == ["a", "b"]
    assert [r.label for r in labelled_runs([one, three])] == ["a, seed 0", "a, seed 1"]
    assert [r.label for r in labelled_runs([one])] == ["a"]


def test_a_section_of_somebody_else_is_drawn_as_the_others(tmp_path: Path) -> None:
    run = make_run(tmp_path, kinds=("fetch", "read", "respond"))
    board = Table("Leaderboard", ("cell", "score"), (("<b>one</b>", "1.0"),))
    dots = Figure(
        "board", "Board", "told", (Panel("dots", (Series("", (Point("a", 1.0),)),)),), numbers_table(("a",), ())
    )
    more = [Section("sweep", "The sweep", (board, dots))]
    page = write_report([run], tmp_path / "r.html", more=more, title="A sweep").read_text(encoding="utf-8")
    assert "<h1><bdi>A sweep</bdi></h1>" in page
    assert '<a href="#sweep">The sweep</a>' in page
    assert "&lt;b&gt;one&lt;/b&gt;" in page


def test_curves_of_any_length_stay_small_and_keep_their_end() -> None:
    points = [Point(float(i), 0.0) for i in range(10_001)]
    found = thinned(points)
    assert len(found) <= 401
    assert found[-1].x == 10_000


def test_points_without_a_value_are_left_out(tmp_path: Path) -> None:
    told = evaluation()
    told["sets"]["red_team"]["models"]["base"]["refusals"] = figure(None)
    refusals = figures(build([make_run(tmp_path, report=told)])[0])["refusals"]
    panel = next(p for p in refusals.panels if p.title == "red_team")
    assert [p.x for p in panel.series[0].points] == ["sl-cai", "rl-cai"]


def test_each_constitution_is_shown_with_texts_and_draws(run: Finished) -> None:
    section = next(s for s in build([run])[0].sections if s.id == "constitution")
    rules = next(b for b in section.blocks if b.kind == "rules")
    assert [r.id for r in rules.rules] == [p["id"] for p in principles(4)["principles"]]
    table = next(b for b in section.blocks if isinstance(b, Table))
    assert table.head == ("principle", "tags", "weight", "drawn by revise", "drawn by judge", "reward, revise")
    assert table.rows[3][3:] == ("20 (25%)", "10 (25%)", "0.70 [0.60, 0.80]")


def test_the_verb_writes_into_the_run_and_prints_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cai.cli import main

    run = make_run(tmp_path, kinds=("fetch", "read", "respond"))
    home = run.artifacts["base"].path.parents[1]
    monkeypatch.setenv("CAI_HOME", str(home))
    assert main(["report", str(run.folder), "--rows", "10"]) == 0
    assert capsys.readouterr().out.strip() == str(run.folder / "report.html")
    assert (run.folder / "report.html").stat().st_size > 10_000
    assert main(["report", str(run.folder), "--out", str(tmp_path / "deep" / "r.html"), "--rows", "0"]) == 0
    assert (tmp_path / "deep" / "r.html").is_file()
    assert main(["report", str(run.folder), "--rows", "-1"]) == 2
    assert main(["report", "nowhere"]) == 2


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    from cai.run.finished import read_finished
    from cai.store.artifacts import Store

    with pytest.raises(SpecError):
        read_finished(tmp_path, Store(tmp_path))


def test_the_wheel_carries_the_pages_parts() -> None:
    from importlib.resources import files

    names = {path.name for path in (files("cai.report") / "assets").iterdir()}
    assert {"page.html.jinja", "report.css", "report.js"} <= names
