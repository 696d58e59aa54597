"""The report's numbers and curves, each against counting, resampling or a plain property."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelbert.training.report import _title
from pixelbert.training.report.blind import Blind, blind_folder
from pixelbert.training.report.curves import _stays_frozen
from pixelbert.training.report.figures import chance, recall_rows
from pixelbert.training.report.pretraining import four_ways, gain_interval, match_tile, word_bars
from pixelbert.training.report.svg import Curve, Panel, draw, log_ticks, number, smooth, thin, ticks

# -- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "per_image", "k"), [(4, 2, 1), (4, 2, 3), (3, 3, 5), (5, 1, 2), (2, 2, 10), (6, 2, 10)]
)
def test_chance_equals_counting_all_orders(images: int, per_image: int, k: int) -> None:
    texts = range(images * per_image)
    tops = list(itertools.combinations(texts, min(k, len(texts))))
    hits = sum(any(t < per_image for t in top) for top in tops)  # the first image's captions
    assert chance("i2t", k, images, per_image) == pytest.approx(100 * hits / len(tops))
    assert chance("t2i", k, images, per_image) == pytest.approx(100 * min(1, k / images))


def test_recall_rows_hold_what_was_measured() -> None:
    figures = {"itm_t2i_r1": 10.0, "itm_t2i_r5": 20.0, "itm_t2i_r10": 30.0, "rerank_t2i_r1": 24.0, "mlm_accuracy": 1.0}
    rows = recall_rows(figures, {"itm": 20, "rerank": None}, 5)
    assert [row["values"] for row in rows] == [[10.0, 20.0, 30.0], [24.0, None, None]]
    assert rows[0]["chances"] == [5.0, 25.0, 50.0] and rows[1]["chances"] is None


def words(seed: int, captions: int) -> list[dict[str, object]]:
    """Masked places whose hits go together within a caption, one to six places each."""
    draw, rows = np.random.default_rng(seed), []
    for record in range(captions):
        level = draw.beta(2, 2)
        for _ in range(int(draw.integers(1, 7))):
            own, other = draw.random() < 0.3 + 0.6 * level, draw.random() < 0.5 * level
            rows.append(
                {"record": record, "word": "a", "predicted": "ab"[not own], "predicted_shuffled": "ab"[not other]}
            )
    return rows


def test_the_interval_of_the_gain_agrees_with_resampling_captions() -> None:
    rows = words(0, 400)
    gains = np.zeros((400, 2))
    for row in rows:
        gains[row["record"]] += [(row["predicted"] == "a") - float(row["predicted_shuffled"] == "a"), 1]  # type: ignore[index]
    draws = np.random.default_rng(1).integers(400, size=(4000, 400))
    sums = gains[draws].sum(1)
    low, high = np.percentile(100 * sums[:, 0] / sums[:, 1], [2.5, 97.5])
    assert gain_interval(rows) == pytest.approx((high - low) / 2, rel=0.08)


def test_no_interval_from_a_handful_of_captions() -> None:
    assert gain_interval(words(0, 10)) is None and gain_interval([]) is None


def test_four_ways_by_hand() -> None:
    kinds = [("a", "a")] * 3 + [("a", "b")] * 4 + [("b", "a")] * 1 + [("b", "b")] * 2
    rows = [{"word": "a", "predicted": own, "predicted_shuffled": other} for own, other in kinds]
    assert {way["kind"]: (way["count"], way["share"]) for way in four_ways(rows)} == {
        "both": (3, 30.0), "own": (4, 40.0), "other": (1, 10.0), "neither": (2, 20.0),
    }  # fmt: skip


def test_word_bars_side_by_side() -> None:
    rows = [{"word": word} for word in "aaabbc"]
    bars = word_bars({"mlm_accuracy": 50.0, "mlm_accuracy_shuffled": 44.0}, rows, Blind("x", 45.0, 10, []), False)
    assert [(b["kind"], b["value"], b["less"]) for b in bars] == [
        ("own", 50.0, None), ("shuffled", 44.0, 6.0), ("blind", 45.0, 5.0), ("commonest", 50.0, None),
    ]  # fmt: skip
    widths = [b["width"] / b["value"] for b in bars]
    assert widths == pytest.approx([widths[0]] * 4) and max(b["width"] for b in bars) <= 100  # one scale, from zero
    assert word_bars({}, rows, None, False) == []


def test_the_interval_of_matches_is_that_of_a_share() -> None:
    tile = match_tile({"itm_accuracy": 90.0}, 5000, True)
    assert tile is not None and tile["interval"] == pytest.approx(196 * math.sqrt(0.9 * 0.1 / 10_000))
    assert match_tile({}, 5000, True) is None


def test_where_the_blind_run_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert blind_folder(Path("runs/a")) == Path("runs/a-blind")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    assert blind_folder(Path(".")) == tmp_path / "b-blind"


# -- curves ----------------------------------------------------------------------------------------------------------

numbers = st.floats(-1e9, 1e9, allow_nan=False)


@given(numbers, st.floats(1e-6, 1e9), st.integers(3, 8))
def test_ticks_are_round_even_and_inside(low: float, span: float, most: int) -> None:
    high = low + span
    if high - low < 1e-9 * abs(low):
        return
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    step = found[1] - found[0] if len(found) > 1 else high - low
    assert all(low - 1e-6 * step <= t <= high + 1e-6 * step for t in found)
    if len(found) > 1:
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-3
        assert np.allclose(np.diff(found), step)


@given(st.floats(1e-9, 1e6), st.floats(1.5, 1e9))
def test_log_ticks_lie_inside(low: float, ratio: float) -> None:
    found = log_ticks(low, low * ratio)
    assert 1 <= len(found) <= 6 and found == sorted(found)
    assert all(low <= t <= low * ratio for t in found)


@pytest.mark.parametrize(
    ("value", "near", "told"),
    [(0.0, 0, "0"), (20000, 0, "20k"), (1.5e6, 0, "1.5M"), (0.25, 0.05, "0.25"), (0.5, 0.1, "0.5"), (2e-4, 0, "2e-4"),
     (70, 10, "70"), (1000, 500, "1k"), (-3, 1, "-3")],
)  # fmt: skip
def test_tick_labels(value: float, near: float, told: str) -> None:
    assert number(value, near) == told


points = st.lists(st.tuples(st.integers(0, 10_000).map(float), st.floats(-100, 100)), max_size=200)


@given(points)
def test_smoothing_stays_between_the_extremes(values: list[tuple[float, float]]) -> None:
    smoothed = smooth(values)
    assert [x for x, _ in smoothed] == [x for x, _ in values]
    heights = [y for _, y in values]
    assert all(min(heights) - 1e-6 <= y <= max(heights) + 1e-6 for _, y in smoothed)


def test_smoothing_is_a_running_mean() -> None:
    values = [(float(i), float(v)) for i, v in enumerate(np.random.default_rng(0).normal(size=200))]
    heights = [y for _, y in values]
    smoothed = smooth(values, share=0.04)  # four on either side
    assert smoothed[100][1] == pytest.approx(np.mean(heights[96:105]))
    assert smoothed[0][1] == pytest.approx(np.mean(heights[:5])) and smoothed[-1][1] == pytest.approx(
        np.mean(heights[-5:])
    )


@given(points.map(sorted), st.integers(2, 20))
def test_thinning_keeps_ends_order_and_extremes(values: list[tuple[float, float]], count: int) -> None:
    kept = thin(values, count)
    assert len(kept) <= 2 * count
    assert kept == sorted(kept, key=lambda p: p[0])
    if values:
        assert kept[0] == values[0] and kept[-1] == values[-1]
    assert kept == values or len(values) > 2 * count


def test_thinning_keeps_a_lone_spike() -> None:
    values = [(float(i), 100.0 if i == 5003 else 0.0) for i in range(10_000)]
    assert (5003.0, 100.0) in thin(values, 100)


def test_a_wild_value_does_not_flatten_the_curve() -> None:
    values = [(float(i), 2.0 + math.sin(i)) for i in range(500)]
    values[250] = (250.0, 1e9)
    assert (
        Panel("loss", [Curve("loss", values, smoothed=False)]).y_range()[1] > 1e8
    )  # told as it is where every value counts
    values[250] = (250.0, 40.0)
    assert Panel("loss", [Curve("loss", values, smoothed=True)]).y_range()[1] < 10


def test_a_flat_curve_looks_flat() -> None:
    low, high = Panel("share", [Curve("share", [(0.0, 50.0), (9.0, 50.1)])], span=5.0).y_range()
    assert high - low >= 5.0 and low < 50 < high
    low, high = Panel("share", [Curve("share", [(0.0, 0.0)])], span=5.0).y_range()
    assert -0.5 <= low <= 0 < high


@pytest.mark.parametrize("log", [False, True])
def test_draw_keeps_curves_in_the_window_and_names_as_text(log: bool) -> None:
    values = [(float(i), 1e-4 * 0.99**i) for i in range(300)]
    svg = draw(Panel("<rates> & more", [Curve("a<b", values, dots=True)], log=log, references=[(5e-5, "<half>")]))
    assert "<rates>" not in svg and "&lt;half&gt;" in svg and "a&lt;b" in svg
    path = next(part for part in svg.split("<path ") if 'class="line' in part)
    numbers = [float(n) for n in path.split('d="M')[1].split('"')[0].split()]
    assert min(numbers[::2]) >= 0 and max(numbers[::2]) <= 330
    assert min(numbers[1::2]) >= 0 and max(numbers[1::2]) <= 190
    assert numbers[1::2] == sorted(numbers[1::2])  # a falling curve goes down the page


def test_an_empty_panel_is_known_as_such() -> None:
    assert Panel("loss", [Curve("loss", [(1.0, float("nan"))])]).empty and Panel("loss", []).empty
    assert not Panel("loss", [Curve("loss", [(1.0, 0.0)])]).empty


@pytest.mark.parametrize(
    ("recipe", "frozen"),
    [
        ({}, False),
        ({"backbone": {"frozen_stages": 2}}, False),
        ({"backbone": {"frozen_stages": 9}}, True),
        ({"backbone": {"frozen_stages": 9}, "phases": [{"until": 0.5}, {"frozen_stages": 9}]}, True),
        ({"backbone": {"frozen_stages": 9}, "phases": [{"until": 0.5}, {"frozen_stages": 3}]}, False),
    ],
)
def test_a_rate_is_told_of_a_cnn_that_learns_alone(recipe: dict[str, object], frozen: bool) -> None:
    assert _stays_frozen(recipe) == frozen


def test_an_evaluation_is_called_by_what_it_is() -> None:
    result = {"split": "val", "images": 200, "shortlist": 20, "folds": 0, "middle_view": True}
    assert _title("val", {**result, "middle_view": False}) == "val"
    assert _title("val-images-200-shortlist20-middle", result) == (
        "val, the first 200 pictures, through a shortlist of 20, each photo with its middle"
    )
    assert _title("test-folds1000", {"split": "test", "folds": 1000}) == "test, in folds of 1,000 pictures"
    assert _title("older", {}) == "older"
