from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.measure import Measurement, missing, summarize
from onereel.evaluation.report.compare import (
    compare_results,
    comparison_warnings,
    group_means,
    worst_rows,
)
from onereel.evaluation.report.page import make_page, write_page
from onereel.evaluation.report.plots import Series, histogram, interval_plot, line_chart
from onereel.evaluation.report.result import (
    Result,
    VideoRow,
    read_json,
    read_result,
    split_missing,
    write_json,
)
from onereel.evaluation.report.sheets import video_sheet
from onereel.media import VideoWriter

VOID = {"meta", "img", "br", "hr", "input", "link"}


class WellFormed(html.parser.HTMLParser):
    """Fails where elements do not nest; collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.loads += [str(v) for k, v in attrs if k in ("src", "href", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> WellFormed:
    parser = WellFormed()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert parser.names.isdisjoint({"script", "link", "iframe", "object"})
    assert all(load.startswith("data:image/png;base64,") for load in parser.loads)
    assert "url(" not in text and "@import" not in text
    return parser


def a_result(model: str = "one", *, shift: float = 0.0, **changes: Any) -> Result:
    values = [0.1 + shift, 0.2 + shift, 0.3 + shift, 0.4 + shift]
    rows = tuple(
        VideoRow(
            name=f"{i:03d}",
            prompt=f"a <red> disc & {i}",
            group=str(i),
            seed=i,
            tags={"motion": ("linear", "bounce")[i % 2]},
            values={"score": v, "ade": 1 - v, "gap": None},
            curves={"drift": (0.0, v, math.nan)},
            files={"made": f"{i:03d}.mp4"},
        )
        for i, v in enumerate(values)
    )
    found = {"score": summarize(values), "ade": summarize([1 - v for v in values], unit="px")}
    fields = {
        "kind": "toybox",
        "model": model,
        "suite": "quick",
        "steps": 8,
        "num_videos": 4,
        "metrics": found,
        "not_computed": {"fvd": "no weights"},
        "config": {"seed": 0, "sampling": {"num_steps": 8}},
        "rank": ("score", "-ade"),
        "videos": rows,
        **changes,
    }
    return Result(**fields)


def test_a_result_survives_its_json(tmp_path: Path) -> None:
    result = a_result()
    path = write_json(result.to_json(), tmp_path / "deep" / "r.json")
    data = json.loads(path.read_text())
    assert data["videos"][0]["curves"]["drift"][2] is None and data["schema"] == 1
    again = read_result(path)
    assert again.metrics == result.metrics and again.rank == result.rank
    assert again.videos[1].values == result.videos[1].values
    assert Result.from_json(again.to_json()) == again


def test_readers_are_strict(tmp_path: Path) -> None:
    data = a_result().to_json()
    with pytest.raises(ConfigError, match=r"unknown key 'metrix'.*did you mean 'metrics'"):
        Result.from_json({**data, "metrix": 1})
    with pytest.raises(ConfigError, match="missing keys model"):
        Result.from_json({k: v for k, v in data.items() if k != "model"})
    with pytest.raises(ConfigError, match=r"videos: unknown key 'nam'"):
        Result.from_json({**data, "videos": [{"nam": "x"}]})
    with pytest.raises(ConfigError, match="schema: expected 1, got 2"):
        Result.from_json({**data, "schema": 2})
    with pytest.raises(ConfigError, match="a mapping"):
        Result.from_json([])  # type: ignore[arg-type]
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(MediaError, match="expected JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(MediaError, match="cannot read"):
        read_result(tmp_path / "none.json")


def test_metrics_have_values_and_the_rest_has_reasons() -> None:
    found, reasons = split_missing(
        {"a": summarize([1.0, 2.0]), "b": missing("no weights"), "c": Measurement(mean=math.inf)}
    )
    assert list(found) == ["a"]
    assert reasons == {"b": "no weights", "c": "it has no finite value"}
    with pytest.raises(ConfigError, match="metrics: expected a value each"):
        a_result(metrics={"b": missing("no weights")})


def test_comparison_tells_apart_what_it_can() -> None:
    base = a_result()
    near, far = a_result("near", shift=0.01), a_result("far", shift=5.0)
    rows = {row.name: row for row in compare_results([base, near, far])}
    close, clear = rows["score"].differences
    assert close.overlap is True and close.value == pytest.approx(0.01)
    assert clear.overlap is False and clear.value == pytest.approx(5.0)
    bare = a_result("bare", metrics={"score": Measurement(mean=0.5)})
    rows = {row.name: row for row in compare_results([base, bare])}
    assert rows["score"].differences[0].overlap is None
    assert rows["ade"].found[1] is None and rows["ade"].differences[0].value is None
    with pytest.raises(ConfigError, match="the same kind"):
        compare_results([base, a_result(kind="vbench")])


def test_comparison_warns_of_other_prompts() -> None:
    other = a_result(suite="long", config={"seed": 1, "sampling": {"num_steps": 16}}, num_videos=3)
    texts = comparison_warnings([a_result(), other])
    assert len(texts) == 3
    assert texts[0] == "run 2 is of suite long, run 1 of quick"
    assert texts[1] == "seed is 1 in run 2 and 0 in run 1"
    assert comparison_warnings([a_result(), a_result("two")]) == ()


def test_the_worst_come_first() -> None:
    result = a_result()
    assert [row.name for row in worst_rows(result, 2)] == ["000", "001"]
    high_is_bad = dataclasses.replace(result, rank=("-score",))
    assert [row.name for row in worst_rows(high_is_bad, 2)] == ["003", "002"]
    broken = dataclasses.replace(result.videos[3], problem="NaN frames")
    result = dataclasses.replace(result, videos=(*result.videos[:3], broken))
    assert worst_rows(result, 1)[0].name == "003"
    assert worst_rows(dataclasses.replace(result, rank=(), videos=result.videos[:3])) == ()


def test_means_by_kind_of_prompt() -> None:
    groups = group_means(a_result(), "motion", names=("score", "gap"))
    assert groups["linear"] == (2, {"score": pytest.approx(0.2)})
    assert groups["bounce"][1]["score"] == pytest.approx(0.3)


def svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_plots_are_well_formed_and_to_scale() -> None:
    root = svg(interval_plot([(0.5, 0.25, 0.75), None, (1.0, 1.0, 1.0)], bounds=(0.0, 1.0)))
    lines = [e for e in root.iter("line") if e.get("class") != "axis"]
    start, end = float(lines[0].get("x1", 0)), float(lines[0].get("x2", 0))
    assert end - start == pytest.approx((190 - 8) / 2)
    assert len(list(root.iter("circle"))) == 2
    line = Series(x=[0, 1, 2, 3], y=[0, 1, math.nan, 2], low=[0] * 4, high=[2] * 4, label="a<b")
    root = svg(line_chart([line], x_label="seconds & more", y_label="drift"))
    assert len(list(root.iter("polyline"))) == 2  # a gap parts the line
    assert line_chart([Series(x=[], y=[])], x_label="", y_label="") == ""
    bars = [
        float(e.get("height", 0)) for e in svg(histogram([0, 0, 1], label="x", bins=2)).iter("rect")
    ]
    assert bars[0] == pytest.approx(2 * bars[1])
    assert histogram([], label="x") == ""


def test_one_page_holds_everything(tmp_path: Path) -> None:
    text = make_page([a_result()])
    page = check_page(text)
    assert {"svg", "table", "details"} <= page.names
    assert "a &lt;red&gt; disc &amp; 0" in text and "<red>" not in text
    for words in ("no weights", "The worst 4", "linear", "drift", "num_steps"):
        assert words in text
    assert "not kept" in text


def test_runs_stand_side_by_side(tmp_path: Path) -> None:
    path = write_page([a_result(), a_result("two", shift=5.0)], tmp_path / "a" / "page.html")
    text = path.read_text()
    check_page(text)
    assert "toybox quick: one, 8 steps against two, 8 steps" in text
    assert "<b>+5</b>" in text
    similar = make_page([a_result(), a_result("two", shift=0.01)])
    assert "≈ +0.01" in similar


def test_the_worst_are_shown(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (12, 32, 48, 3), np.uint8)
    for name in ("000", "000-truth"):
        with VideoWriter(tmp_path / f"{name}.mp4", width=48, height=32, fps=24) as writer:
            writer.write(frames)
    result = a_result()
    first = dataclasses.replace(
        result.videos[0], files={"made": "000.mp4", "truth": "000-truth.mp4"}
    )
    result = dataclasses.replace(result, videos=(first,), folder=str(tmp_path))
    page = check_page(make_page([result], sheet=tmp_path / "worst.png"))
    assert len(page.loads) == 1
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.width > 8 * 96 and picture.height > 2 * 96
    with pytest.raises(MediaError, match=re.escape("001.mp4")):
        video_sheet(result, [VideoRow(name="x", files={"made": "001.mp4"})], path=tmp_path / "p")
    with pytest.raises(ConfigError, match=r"videos were kept.*--out FOLDER"):
        video_sheet(a_result(), [first], path=tmp_path / "p")


def test_a_result_finds_its_videos_beside_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_json(a_result(folder=str(run)).to_json(), run / "result.json")
    moved = run.rename(tmp_path / "moved")
    assert read_result(moved).folder == str(moved)
    copy = write_json(a_result(folder=str(run)).to_json(), tmp_path / "copy.json")
    assert read_result(copy).folder == ""
