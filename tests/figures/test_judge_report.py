"""``judge_report.json`` as a document: what older programs wrote is read, what is written is the same bytes as ever.

``judge_report_*.json`` beside this file are as a program wrote them that did not know of versions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cai.errors import SpecError
from cai.figures.intervals import Interval, PlainFigure
from cai.figures.judge_report import (
    VERSION,
    FittedTemperature,
    JudgeReport,
    LabelFigures,
    PairCounts,
    SetShares,
    VoteCounts,
    read_judge_report,
    write_judge_report,
)
from cai.stages.judge.report import headline, summary_rows

OLDER = sorted(Path(__file__).parent.glob("judge_report_*.json"))


def older(name: str) -> Path:
    return Path(__file__).parent / f"judge_report_{name}.json"


def written(folder: Path, document: Any) -> Path:
    path = folder / "judge_report.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_what_is_read_is_written_as_the_same_bytes_under_a_version(path: Path, tmp_path: Path) -> None:
    write_judge_report(tmp_path / "again.json", read_judge_report(path))
    text = (tmp_path / "again.json").read_text(encoding="utf-8")
    assert text.startswith('{\n "version": 1,\n "judge": {\n')
    assert text.replace(' "version": 1,\n', "", 1) == path.read_text(encoding="utf-8")
    assert read_judge_report(tmp_path / "again.json") == read_judge_report(path)


def test_every_part_has_its_place() -> None:
    report, given = read_judge_report(older("best_worst")), read_judge_report(older("given_labels"))
    assert report.judge["scoring"] == "best_worst"
    assert (report.version, report.rows) == (1, 5)
    assert report.votes == VoteCounts(total=20, readable=20)
    assert report.pairs == PairCounts(total=5, decided=5)
    assert report.swap.consistency == Interval(1.0, 0.565518, 1.0, 10)
    assert report.principles.krippendorff_alpha == PlainFigure(1.0, 5)
    assert report.principles.each["p1"].pairs == 1
    assert sum(place.n for place in report.confidence.bins) == report.confidence.n == 5
    assert report.sets is not None
    assert [share.value for share in report.sets.places["4"].best] == [0.2, 0.3, 0.3, 0.2]
    assert report.labelled is not None
    assert report.labelled.log_loss.clipped_at == 0.001
    assert report.labelled.fitted.setting is None
    assert list(report.labelled.topics)[-1] == "5 other topics"
    assert (report.given_labels, given.sets, given.labelled) == (None, None, None)
    assert given.given_labels is not None
    assert given.given_labels.fitted.setting == 0.01
    assert given.given_labels.baselines["a coin"].accuracy == Interval(0.5, n=60)


def test_people_see_what_they_have_always_seen() -> None:
    assert summary_rows(read_judge_report(older("best_worst"))) == [
        ("votes read", "20 of 20", "nothing unreadable"),
        ("pairs decided", "5 of 5", "0 ties, 0 unread"),
        ("swap consistency", "100.0% [56.6%, 100.0%], n=10", "same verdict when the answers change places"),
        ("position bias", "+0.000 [+0.000, +0.000], n=20", "p of the answer shown first, above 0.5; 0 is fair"),
        ("orders contradict", "0.0% [0.0%, 43.4%], n=10", "best and worst changed places, which makes a tie"),
        ("best of 4, by place", "20%, 30%, 30%, 20%, n=20", "25% each is fair, where the order is drawn"),
        ("worst of 4, by place", "25%, 25%, 25%, 25%, n=20", "25% each is fair, where the order is drawn"),
        ("longer wins", "40.0% [11.8%, 76.9%], n=5", "of decided pairs; compare with people's labels"),
        ("principles agree", "100.0% [56.6%, 100.0%], n=5", "two principles, same verdict; alpha 1.00, 0 is chance"),
        ("labelled: accuracy", "100.0% [94.0%, 100.0%], n=60", "always longer 55.0%, shorter 45.0%, coin 50%"),
        ("labelled: log loss", "0.001", "a coin has 0.693; 0.000 at temperature x 0.01"),
        ("labelled: calibration error", "0.000", "sure minus right, 0 is calibrated"),
        ("labelled: longer preferred", "55.0% [42.5%, 66.9%], n=60", "by people 55.0% [42.5%, 66.9%], n=60"),
    ]


def test_a_part_that_a_file_lacks_is_empty(tmp_path: Path) -> None:
    assert read_judge_report(written(tmp_path, {})) == JudgeReport()
    part = {"votes": {"asked": 7}, "labelled": {"accuracy": {"value": 0.75, "n": 4}}, "of another program": [1]}
    report = read_judge_report(written(tmp_path, part))
    assert report == JudgeReport(
        votes=VoteCounts(total=7), labelled=LabelFigures(accuracy=Interval(0.75, n=4), fitted=FittedTemperature())
    )
    assert headline(report) == {"labelled accuracy": 0.75, "labelled n": 4}
    rows = {name: (value, meaning) for name, value, meaning in summary_rows(report)}
    assert rows["labelled: accuracy"] == ("75.0% [-, -], n=4", "always longer -, shorter -, coin 50%")
    assert rows["labelled: log loss"] == ("-", "a coin has 0.693")
    assert [row[0] for row in summary_rows(JudgeReport(sets=SetShares()))] == ["votes read", "pairs decided"]


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"version": VERSION + 1, "votes": "of another shape"})
    with pytest.raises(SpecError, match=r"judge_report\.json: .*version 2.* reads up to 1; upgrade constitution-as-c"):
        read_judge_report(path)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("{", "Expecting property name"),
        ({"swap": {"consistency": {"value": "high"}}}, r"swap\.consistency\.value: .* valid number"),
        ({"version": "two"}, "version: .* valid integer"),
    ],
)
def test_what_is_no_report_is_refused_with_its_place(document: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"judge_report\.json: cannot be read \(.*{reason}.*\); run `store verify`"):
        read_judge_report(written(tmp_path, document))
    with pytest.raises(SpecError, match="is no JSON object"):
        read_judge_report(written(tmp_path, [1]))


def test_a_report_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"judge_report\.json: cannot be read"):
        read_judge_report(tmp_path / "judge_report.json")


def test_the_documents_of_steps_cost_no_start() -> None:
    heavy = "[name for name in ('pydantic', 'numpy', 'scipy', 'torch') if name in sys.modules]"
    code = f"import sys, cai.figures.judge_report, cai.figures.usage; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
