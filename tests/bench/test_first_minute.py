"""The README's first minute: its very lines, on a quickstart of a few scenes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from test_story import FEW, QUICK

from pixelbert.bench.quickstart import story
from pixelbert.cli import main

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[list[str]]:
    """The lines that call pixelbert, as arguments."""
    block = re.search(r"<!-- first minute -->\n```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    lines = [line for line in block[1].splitlines() if line.startswith("pixelbert ")]
    return [shlex.split(line)[1:] for line in lines]


def test_the_lines_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "quickstart"
    story.run_quickstart(out, scenes=FEW, overrides=QUICK, parallel=False)
    monkeypatch.chdir(out / "scenes" / "images" / "val")
    capsys.readouterr()
    assert [line[0] for line in commands()] == ["ask", "match", "attend"]
    for line in commands():
        assert main(line) == 0
        assert capsys.readouterr().out.strip()
    assert (out / "scenes" / "images" / "val" / "bar.png").stat().st_size > 1000
