"""One page about several runs: what each task came to beside its blind model, and some of its answers with pictures."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pixelbert.errors import PixelBertError
from pixelbert.training.files import write_file
from pixelbert.training.report.blind import find_blind
from pixelbert.training.report.page import duration, head, now, render
from pixelbert.training.report.part import Part
from pixelbert.training.report.parts import part_of
from pixelbert.training.report.pictures import MOST_LOOK_BYTES, MOST_PICTURE_BYTES
from pixelbert.training.report.record import RunRecord
from pixelbert.training.report.sheet import looks, sheet
from pixelbert.training.report.svg import draw

_EXAMPLES = {"lot": 4, "helped": 2, "failed": 2}  # of each group


def write_story(
    out: Path | str,
    runs: Mapping[str, Path | str],
    *,
    title: str = "From pictures and words to answers",
    lead: str = "",
    facts: Mapping[str, str] | None = None,
    words: Mapping[str, Mapping[str, float]] | None = None,
    examples: Mapping[str, int] | None = None,
) -> Path:
    """Write the page `out` about several runs, whole or not at all.

    Args:
        runs: what a run is called on the page -> its folder, in the page's order. The blind model of a run NAME is the
            run NAME-blind of this mapping, else the folder beside it, FOLDER-blind. A folder that is no run, or not
            yet scored, gets a line that says so.
        title, lead: the page's heading, and a sentence under it.
        facts: more to tell at the top ("time": "9 min"), beside machine and training time.
        words: masked words right in percent by class of word ("color" -> "true", "shuffled", "blind", "chance",
            "count"), shown with the pretraining run.
        examples: how many of each group ("lot", "helped", "failed"); a group that is not named is left out.

    Returns the page's path. Raises MachineError when the disk is full.
    """
    out, count = Path(out), len([name for name in runs if not _is_twin(name, runs)])
    sections: list[dict[str, Any]] = []
    for name, folder in runs.items():
        if _is_twin(name, runs):
            continue
        twin = runs.get(f"{name}-blind")
        found = _section(name, Path(folder), Path(twin) if twin is not None else None, len(sections))
        if "record" in found:
            budget = MOST_PICTURE_BYTES // max(1, count)
            found |= sheet(found["record"], found["part"], budget, _EXAMPLES if examples is None else examples)
            found["looks"] = looks(found["record"], MOST_LOOK_BYTES // max(1, count))
            found["link"] = _link(out, found["record"].path / "report.html")
            found["words"] = dict(words or {}) if found["part"].name == "pretraining" else {}
        sections.append(found)
    page = render(
        "story.html.jinja", title=title, lead=lead, sections=sections, facts=_facts(sections) | dict(facts or {}),
        written=now(),
    )  # fmt: skip
    write_file(out, page)
    return out


def _is_twin(name: str, runs: Mapping[str, Path | str]) -> bool:
    """Whether a run is the blind model of another of the mapping."""
    return name.endswith("-blind") and name.removesuffix("-blind") in runs


def _section(name: str, folder: Path, twin: Path | None, number: int) -> dict[str, Any]:
    """One run's part of the page; `missing` says why there is none."""
    try:
        record = RunRecord.read(folder)
    except PixelBertError as error:
        return {"name": name, "number": number, "missing": str(error), "headlines": []}
    part, shown, blind = part_of(record), record.shown, _blind(record, twin)
    told = {"name": name, "number": number, "part": part, "record": record, "head": head(record, "")}
    if shown is None:
        return told | {"missing": "not scored yet", "headlines": [], "curve": None}
    cards = part.figures(record, shown, blind)
    curve = _curve(part, record, blind, number)
    return told | {"missing": "", "cards": cards, "shown": shown, "headlines": part.headlines(cards), "curve": curve}


def _blind(record: RunRecord, twin: Path | None) -> RunRecord | None:
    """The blind run; None where it is missing or is none."""
    try:
        return find_blind(record, twin)
    except PixelBertError:
        return None


def _curve(part: Part, record: RunRecord, blind: RunRecord | None, number: int) -> dict[str, Any] | None:
    """The first panel of the held-out figures."""
    panels = [panel for panel in part.panels(record, blind) if not panel.empty]
    if not panels:
        return None
    panel = panels[0]
    panel.width, panel.unit_seen = 380, part.unit
    return {"panel": panel, "svg": Markup(draw(panel, number))}


def _link(out: Path, page: Path) -> str:
    """The way from the page to a run's own report; empty where there is none."""
    if not page.is_file():
        return ""
    return urllib.parse.quote(os.path.relpath(page.resolve(), out.resolve().parent).replace(os.sep, "/"))


def _facts(sections: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What the runs tell of themselves: machine and time."""
    records = [section["record"] for section in sections if "record" in section]
    machines = dict.fromkeys(str(r.sessions[-1].get("machine") or "") for r in records if r.sessions)
    seconds = [r.seconds for r in records if r.seconds is not None]
    found = {"machine": ", ".join(name for name in machines if name)}
    found["training time"] = duration(sum(seconds)) if seconds else ""
    return {name: value for name, value in found.items() if value}
