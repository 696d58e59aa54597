"""The benchmark runs and reports what it measured; times are not asserted."""

import numpy as np
import pytest

from pixelbert.bench import images


def test_it_prints_a_row_for_each_rule(tmp_path, capsys):
    for index, photo in enumerate(images.draw_photos(2, 64, 96)):
        (tmp_path / f"{index}.jpg").write_bytes(photo)
    images.main([str(tmp_path), "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 photos")
    assert [line[:12].strip() for line in lines[3:]] == ["decode", *images.RULES]


def test_each_rule_is_measured_with_itself(monkeypatch):
    photo = images.draw_photos(1, 64, 96)[0]
    seen = []
    monkeypatch.setattr(images, "load_image", lambda data, rule: seen.append(rule) or images.pillow_load(data, rule))
    images.report([photo], 1)
    assert set(seen) == set(images.RULES.values())


def test_deviation_by_hand():
    dark, light = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 4, np.uint8)
    assert images.deviation(lambda data: dark, lambda data: light if data else dark, [b"", b"x"]) == (2.0, 4.0)


def test_an_empty_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        images.main([str(tmp_path)])
    assert "no *.jpg" in capsys.readouterr().err
