"""Tables, results.json and the plot."""

import dataclasses
import warnings

import cv2
import pytest

from oskt_torchreid.errors import ConfigError
from oskt_torchreid.report import (
    Row,
    markdown_table,
    read_results,
    size_vs_map,
    text_table,
    write_markdown,
    write_results,
)
from oskt_torchreid.report.tables import human_count

ROWS = (
    Row("osnet_x0_5", "teacher", 1_300_000, 69_000_000, map_after=0.837, rank1_after=0.927, epochs=11, seconds=115.2),
    Row("S-student", "s-student", 203_568, 9_500_000, 0.781, 0.88, epochs=9, seconds=140.0),
    Row("width=0.5", "student", 203_568, 9_500_000, 0.776, 0.87, 0.801, 0.9, epochs=2, seconds=11.6),
    Row("width=0.75", "student", 436_000, 19_000_000, 0.79, 0.89, 0.82, 0.912, epochs=2, seconds=15.0),
    Row("scratch", "control", 203_568, 9_500_000, 0.03, 0.02, 0.19, 0.25, epochs=2, seconds=11.0),
    Row("slice", "control", 203_568, 9_500_000, 0.04, 0.03, 0.63, 0.75, epochs=2, seconds=11.0),
)


def test_tables_show_percent_units_and_gaps():
    table = text_table(ROWS)
    assert table.splitlines()[0].split()[:3] == ["network", "kind", "params"]
    assert "1.30 M" in table and "69.0 M" in table and "83.7" in table and "115" in table
    teacher = next(line for line in table.splitlines() if line.startswith("osnet_x0_5"))
    assert teacher.split()[6:8] == ["-", "-"]  # no numbers before fine-tuning
    assert len(markdown_table(ROWS).splitlines()) == len(ROWS) + 2
    assert text_table([]).startswith("network")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1_000, "1.00 k"), (999_900, "1.00 M"), (2_193_616, "2.19 M"), (123_456_789, "123 M")],
)
def test_human_counts(count, text):
    assert human_count(count) == text


def test_markdown_file(tmp_path):
    write_markdown(tmp_path / "results.md", ROWS, title="synthped", notes=["Equal passes."])
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# synthped\n\n| network") and text.endswith("\n\nEqual passes.\n")


def test_results_round_trip(tmp_path):
    write_results(tmp_path / "results.json", ROWS, {"seed": 1, "stages": {"refine": 140.0}})
    results = read_results(tmp_path / "results.json")
    assert results.rows == ROWS
    assert results.facts == {"seed": 1, "stages": {"refine": 140.0}}


def test_damaged_results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"format_version": 0}')
    with pytest.raises(ConfigError, match="has results format 0; this version reads 1"):
        read_results(path)
    path.write_text('{"format_version": 1, "facts": {}, "rows": [{"title": "x"}]}')
    with pytest.raises(ConfigError, match="does not hold the rows of a run"):
        read_results(path)


def test_unknown_kind():
    with pytest.raises(ConfigError, match="kind of result 'x' is 'gene'; allowed: teacher, s-student"):
        dataclasses.replace(ROWS[0], name="x", kind="gene")


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[2:3], ROWS[4:]])
def test_plot_is_a_readable_picture(tmp_path, rows):
    size_vs_map(rows, tmp_path / "size_vs_map.png", title="synthped quick")
    picture = cv2.imread(str(tmp_path / "size_vs_map.png"))
    assert picture.shape == (690, 1080, 3)
    assert picture.std() > 5
    assert [path.name for path in tmp_path.iterdir()] == ["size_vs_map.png"]


def test_a_picture_of_many_methods_and_widths_keeps_its_room(tmp_path):
    """A method's controls of all widths are one family; the picture's frame, seen as dark columns, stays wide."""
    names = ("scratch", "slice", "first", "norm", "kmeans", "depgraph", "kd++")
    rows = [
        Row(f"{name}:width={width}", "control", int(1e7 * width**2), 1, 0.05 * width, 0.1, 0.3 + width / 9)
        for name in names
        for width in (0.125, 0.25, 0.75)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        size_vs_map([*ROWS[:1], *rows], tmp_path / "plot.png")
    grid = (cv2.imread(str(tmp_path / "plot.png"), cv2.IMREAD_GRAYSCALE) < 230).any(0)
    assert grid[:600].mean() > 0.9


def test_a_picture_is_drawn_again_when_it_shows_something_else(tmp_path):
    path = tmp_path / "plot.png"
    size_vs_map(ROWS, path)
    drawn = path.stat().st_mtime_ns
    size_vs_map(ROWS, path)
    assert path.stat().st_mtime_ns == drawn
    size_vs_map(ROWS[:3], path)
    assert path.stat().st_mtime_ns != drawn
    path.write_bytes(path.read_bytes()[:40])
    size_vs_map(ROWS[:3], path)
    assert cv2.imread(str(path)) is not None


def test_a_long_name_leaves_room_for_the_axes(tmp_path, recwarn):
    """The row of a student of a file has its whole path."""
    rows = [
        dataclasses.replace(row, name=f"file=/{'long/' * 40}student.pth") if row.name == "slice" else row
        for row in ROWS
    ]
    size_vs_map(rows, tmp_path / "plot.png")
    assert not [warning for warning in recwarn if "constrained_layout" in str(warning.message)]


def test_nothing_to_plot(tmp_path):
    with pytest.raises(ConfigError, match="no result has an mAP yet"):
        size_vs_map([Row("student", "student", 10, 10)], tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []


def test_several_targets_and_reranked_numbers():
    """A table for each target; re-ranked numbers besides plain ones, in the file too."""
    numbers = {
        "market1501": {"mAP": 0.801, "rank1": 0.9, "reranked_mAP": 0.855, "reranked_rank1": 0.91},
        "cuhk03": {"mAP": 0.311, "rank1": 0.302, "reranked_mAP": 0.377, "reranked_rank1": 0.333},
    }
    row = dataclasses.replace(ROWS[2], targets=numbers)
    first, second = text_table([row]).split("cuhk03:\n\n")
    assert first.startswith("market1501:\n\n") and "mAP re-ranked" in first
    assert first.rstrip().splitlines()[-1].split()[-6:] == ["80.1", "90.0", "85.5", "91.0", "2", "12"]
    assert second.splitlines()[-1].split()[-6:] == ["31.1", "30.2", "37.7", "33.3", "2", "12"]
    assert row.reranked == {"mAP": 0.855, "rank1": 0.91} and row.on("cuhk03").reranked["mAP"] == 0.377
    one = dataclasses.replace(row, targets={"market1501": {"mAP": 0.801, "rank1": 0.9}})
    assert text_table([one]) == text_table([ROWS[2]])


def test_what_it_costs_to_find_all():
    """mINP has a column where it was measured, of what was trained last."""
    before = {"synthped": {"mAP": 0.5, "rank1": 0.6, "mINP": 0.2}}
    untrained = dataclasses.replace(ROWS[2], targets_before=before)
    trained = dataclasses.replace(untrained, targets={"synthped": {"mAP": 0.7, "rank1": 0.8, "mINP": 0.413}})
    lines = text_table([trained, untrained, ROWS[2]]).splitlines()
    assert lines[0].split()[-4:] == ["rank-1", "mINP", "epochs", "seconds"]
    assert [line.split()[-3] for line in lines[2:]] == ["41.3", "20.0", "-"]
