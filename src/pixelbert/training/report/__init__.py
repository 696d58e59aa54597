"""RUN/report.html: what a run came to, on one page that needs nothing beside itself, not even a network.

part.py       what a task's page has of its own; pretraining.py, question_answering.py, image_pairs.py and
              retrieval.py are the four of them, parts.py lists them
record.py     reads the run folder; blind.py, figures.py, curves.py, sheet.py, settings.py make plain values of it
page/         the templates that show those values; page.py, svg.py and pictures.py write them
story.py      one page about several runs
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pixelbert.errors import CheckpointError
from pixelbert.training.files import write_file
from pixelbert.training.report.blind import find_blind
from pixelbert.training.report.calibration import calibration_fragment
from pixelbert.training.report.curves import curve_groups
from pixelbert.training.report.page import environment, head, render
from pixelbert.training.report.part import Part
from pixelbert.training.report.parts import part_of
from pixelbert.training.report.record import RunRecord
from pixelbert.training.report.settings import commands, recipe_settings, weight_rows
from pixelbert.training.report.sheet import looks, sheet


def write_report(run: Path | str, *, blind: Path | str | None = None, ended: str = "") -> Path:
    """Write RUN/report.html from the run's files, whole or not at all; also for a run that goes on or was stopped.

    Args:
        blind: the run of the blind model; without it RUN-blind is taken where there is one.
        ended: how the run ended before its last step ("interrupted"), when the caller knows.

    Returns the page's path. Raises CheckpointError for a folder that is no run, UsageError for a `blind` that is not
    blind, MachineError when the disk is full.
    """
    record = RunRecord.read(Path(run))
    other = find_blind(record, Path(blind) if blind is not None else None)
    page = render("report.html.jinja", **context(record, other, ended))
    path = record.path / "report.html"
    write_file(path, page)
    return path


def renew_report(run: Path, note: Callable[[str], None], *, blind: Path | str | None = None, ended: str = "") -> None:
    """`write_report` for those who have other work: `note` is told when it fails, and nothing is raised.

    A blind run's report also renews that of the run it belongs to.
    """
    try:
        write_report(run, blind=blind, ended=ended)
        seeing = run.with_name(run.name.removesuffix("-blind"))
        if seeing != run and (seeing / "report.html").is_file():
            write_report(seeing)
    except Exception as error:
        note(f"the report was not written: {error}")


@contextmanager
def reporting(run: Path, note: Callable[[str], None], active: bool = True) -> Iterator[Callable[[], None]]:
    """Renews the report when the block ends, however it ends, and whenever the function it gives is called.

    `active` is False on all but the main process.
    """

    def write(ended: str = "") -> None:
        if active:
            renew_report(run, note, ended=ended)

    environment()
    try:
        yield write
    except BaseException as error:
        write("interrupted" if isinstance(error, KeyboardInterrupt) else f"stopped: {error or type(error).__name__}")
        raise
    write()


# -- the page's content ------------------------------------------------------------------------------------------------


def context(record: RunRecord, blind: RunRecord | None, ended: str = "") -> dict[str, Any]:
    """All that the template shows, as plain values."""
    shown, part = record.shown, part_of(record)
    lines = commands(record)
    found = [_evaluation(split, result, part) for split, result in record.evaluations.items()]
    for evaluation in found:  # whose recalls stand in the cards above already
        if shown is not None and shown.folder == record.path / "evaluation" / evaluation["split"]:
            evaluation["recalls"] = []
    return {
        "part": part,
        "head": head(record, ended),
        "shown": shown,
        "select_on": record.select_on,
        "is_blind": record.blind,
        "cards": part.figures(record, shown, blind) if shown is not None else {},
        "evaluations": found,
        "calibration": Markup(_calibration(record.path)),
        "curves": curve_groups(record, blind, part),
        **sheet(record, part),
        "looks": (seen := looks(record)),
        "looks_methods": {one["method"] for row in seen for one in row["sheets"]},
        "settings": recipe_settings(record),
        "weights": weight_rows(record.run.get("weights") or {}),
        "versions": record.run.get("versions") or {},
        "fingerprint": (record.run.get("data") or {}).get("fingerprint", ""),
        "sessions": record.sessions,
        "commands": lines,
        "blind_command": next((line for what, line in lines if what == "train its blind model"), ""),
    }


def _calibration(run: Path) -> str:
    """How far stated and found chances differ, where the run was calibrated; a damaged file is left out."""
    try:
        return calibration_fragment(run)
    except CheckpointError:
        return ""


def _evaluation(split: str, result: dict[str, Any], part: Part) -> dict[str, Any]:
    """One evaluation, every figure of it."""
    figures = {k: v for k, v in result["figures"].items() if isinstance(v, (int, float))}
    recalls = part.recalls({**result, "figures": figures})
    tabled = r"^(?!shortlist_loss).*?(t2i|i2t)_r\d+$" if recalls else "$^"
    plain = {k: v for k, v in figures.items() if not re.search(tabled, k)}
    return {"split": split, "title": _title(split, result), "result": result, "figures": plain, "recalls": recalls}


def _title(folder: str, result: dict[str, Any]) -> str:
    """What was evaluated and how, from the result; the folder's name where that does not tell."""
    if "split" not in result:
        return folder
    ways = [
        f"the first {result['images']:,} pictures" if re.search(r"-images-\d", folder) else "",
        f"through a shortlist of {result['shortlist']}" if re.search(r"-shortlist\d", folder) else "",
        f"in folds of {result['folds']:,} pictures" if result.get("folds") else "",
        "each photo with its middle" if result.get("middle_view") else "",
    ]
    return ", ".join([str(result["split"]), *(way for way in ways if way)])
