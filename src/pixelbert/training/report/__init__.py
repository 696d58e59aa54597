"""RUN/report.html: what a run came to, on one page that needs nothing beside itself, not even a network."""

from __future__ import annotations

import base64
import datetime as dt
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2

from pixelbert.training.files import write_file
from pixelbert.training.report.curves import curve_groups
from pixelbert.training.report.figures import (
    compare_blind,
    find_blind,
    four_ways,
    gain_interval,
    match_tile,
    recall_rows,
    word_bars,
)
from pixelbert.training.report.record import Row, RunRecord, Scored, read_sheet
from pixelbert.training.report.settings import commands, recipe_settings, weight_rows

_GROUPS = {
    "lot": ("Drawn by lot", "Not chosen for what they show: the model as it is."),
    "helped": ("Where the picture mattered most", "Right with its own picture, wrong with another. Chosen for that."),
    "failed": ("Where it was sure and wrong", "Wrong with its own picture, and confident. Chosen for that."),
}
_CLOSING, _OPENING = re.compile(r"[.,;:!?%)\]}’'-]"), re.compile(r"[(\[{‘-]")
_PLACES = 3  # masked places of an example that are open to the eye; the others unfold
_MOST_PICTURE_BYTES = 1_300_000  # of all pictures together: the page stays under 2 MB


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
    page = _template().render(context(record, other, ended))
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

    _template()
    try:
        yield write
    except BaseException as error:
        write("interrupted" if isinstance(error, KeyboardInterrupt) else f"stopped: {error or type(error).__name__}")
        raise
    write()


# -- the page's content ------------------------------------------------------------------------------------------------


def context(record: RunRecord, blind: RunRecord | None, ended: str = "") -> dict[str, Any]:
    """All that the template shows, as plain values."""
    shown = record.shown
    return {
        "head": _head(record, ended),
        "shown": shown,
        "select_on": record.select_on,
        "is_blind": record.blind,
        **(_figures(record, shown, blind) if shown is not None else {}),
        "evaluations": [_evaluation(split, result) for split, result in record.evaluations.items()],
        "curves": curve_groups(record, blind),
        **_sheet(record),
        "settings": recipe_settings(record),
        "weights": weight_rows(record.run.get("weights") or {}),
        "versions": record.run.get("versions") or {},
        "fingerprint": (record.run.get("data") or {}).get("fingerprint", ""),
        "sessions": record.sessions,
        "commands": commands(record),
    }


def _figures(record: RunRecord, shown: Scored, blind: RunRecord | None) -> dict[str, Any]:
    """The cards at the top."""
    compared = compare_blind(record, shown, blind)
    counts = {"dual": shown.images, "rerank": shown.images, "itm": shown.exact_images or None}
    return {
        "words": word_bars(shown.figures, shown.words, compared, record.blind),
        "gain": shown.figures.get("mlm_gain_shuffled"),
        "gain_interval": gain_interval(shown.words) if shown.whole else None,
        "mlm_trained": record.trained("mlm"),
        "blind": compared,
        "match": match_tile(shown.figures, shown.captions, record.trained("itm")),
        "recalls": recall_rows(shown.figures, counts, shown.per_image),
        "four_ways": four_ways(shown.words),
        "places": len(shown.words),
    }


def _head(record: RunRecord, ended: str) -> dict[str, Any]:
    seconds, session = record.seconds, record.sessions[-1] if record.sessions else {}
    data = record.run.get("data") or {}
    total = record.steps
    batch = int(record.get("optim.batch_size", 0) or 0)
    return {
        "recipe": record.recipe.get("name") or record.run.get("recipe") or record.name,
        "run": record.name,
        "description": record.recipe.get("description") or "",
        "data": data.get("folder") or "",
        "pairs": record.pairs,
        "last_validation": record.validations[-1]["pairs"] if record.validations else 0,
        "total": total * batch if total else None,
        "share": min(1.0, record.step / total) if total else None,
        "finished": record.finished,
        "ended": "" if record.finished else ended,
        "time": duration(seconds) if seconds is not None else None,
        "time_is_estimate": not any("seconds" in r for r in record.train),
        "session": session,
        "precision": _precision(session),
        "started": str(record.run.get("started") or "").replace("T", " ").replace("+00:00", " UTC"),
        "written": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _precision(session: Row) -> str:
    backbone, encoder = session.get("backbone"), session.get("encoder")
    if not backbone:
        return ""
    return str(backbone) if backbone == encoder else f"CNN {backbone}, encoder {encoder}"


def _evaluation(split: str, result: dict[str, Any]) -> dict[str, Any]:
    """One evaluation, every figure of it."""
    images, texts = result.get("images"), result.get("texts")
    per_image = max(1, round(texts / images)) if images and texts else 1
    counts = {"dual": images, "rerank": images, "itm": result.get("exact_images") or None}
    figures = {k: v for k, v in result["figures"].items() if isinstance(v, (int, float))}
    plain = {k: v for k, v in figures.items() if not re.search(r"_(t2i|i2t)_r\d+$", k)}
    return {"split": split, "result": result, "figures": plain, "recalls": recall_rows(figures, counts, per_image)}


# -- the sheet of examples ---------------------------------------------------------------------------------------------


def _sheet(record: RunRecord) -> dict[str, Any]:
    """Groups of examples with their pictures embedded; a picture beyond the page's budget, or missing, is left out."""
    folders = [record.path / "validation"]
    if record.shown is not None:
        folders.insert(0, record.shown.folder)
    folder = next((f for f in folders if read_sheet(f)), folders[-1])
    own = record.shown is not None and record.shown.whole and folder == record.shown.folder
    last = record.validations[-1]["pairs"] if record.validations else 0
    left, groups = _MOST_PICTURE_BYTES, []
    for key, (title, rule) in _GROUPS.items():
        examples = []
        for example in read_sheet(folder).get("examples", []):
            if example.get("group") != key:
                continue
            pictures = {}
            for name in ("picture", "other_picture"):
                data = _bytes(folder, example.get(name))
                if data and len(data) <= left:
                    left -= len(data)
                    pictures[name] = "data:image/jpeg;base64," + base64.b64encode(data).decode()
            more = {"tokens": tokens(example), "masked": telling(example["masked"])}
            examples.append({**example, "picture": None, "other_picture": None, **pictures, **more})
        if examples:
            groups.append({"key": key, "title": title, "rule": rule, "examples": examples})
    return {"sheet": groups, "sheet_pairs": record.shown.pairs if own and record.shown is not None else last}


def _bytes(folder: Path, name: Any) -> bytes | None:
    """A picture of the sheet; only from the sheet's own folder."""
    if not isinstance(name, str) or not re.fullmatch(r"examples/[\w-]+\.jpg", name):
        return None
    try:
        return (folder / name).read_bytes()
    except OSError:
        return None


def telling(places: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Masked places in their order, each with `telling`: the three where the picture, or a sure mistake, shows most."""

    def worth(place: dict[str, Any]) -> float:
        return max(abs(place["own_true"] - place["other_true"]), place["own"][0][1] - place["own_true"])

    best = sorted(range(len(places)), key=lambda i: -worth(places[i]))[:_PLACES]
    return [{**place, "telling": i in best} for i, place in enumerate(places)]


def tokens(example: dict[str, Any]) -> list[dict[str, Any]]:
    """The caption's pieces to set as text: `text`, whether a `space` goes before, and the masked place or None."""
    masked = {m["place"]: m for m in example["masked"]}
    found: list[dict[str, Any]] = []
    before = "("  # no space before the first
    for place, piece in enumerate(example["pieces"]):
        endings = before in ("'", "’") and piece in ("s", "t", "d", "m", "re", "ve", "ll")
        glued = piece.startswith("##") or _CLOSING.fullmatch(piece) or _OPENING.fullmatch(before) or endings
        found.append({"text": plain(piece), "space": not glued, "masked": masked.get(place)})
        before = piece
    return found


def plain(piece: str) -> str:
    """A word piece without its mark."""
    return piece.removeprefix("##") if len(piece) > 2 else piece


@functools.cache
def _template() -> jinja2.Template:
    """The page; read once, so that a long run does not mix two versions of the package."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pixelbert.training.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
    )
    environment.filters |= {"percent": percent, "plain": plain, "count": lambda n: f"{n:,}"}
    for part in ("report.css", "report.js"):
        environment.get_template(part)
    return environment.get_template("report.html.jinja")


def duration(seconds: float) -> str:
    """45 s, 41 min, 1 h 12 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def percent(value: float, digits: int = 1) -> str:
    """49.3 %, with a narrow space that does not break; under 0.1 it says so."""
    if 0 < value < 0.5 * 10**-digits:
        return f"<{10**-digits:g}\u202f%"
    return f"{value:.{digits}f}\u202f%"
