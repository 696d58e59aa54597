"""The page around a task's part: its template, the head of a run, and how numbers are written."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable
from typing import Any

import jinja2

from pixelbert.training.report.pretraining import plain
from pixelbert.training.report.record import Row, RunRecord

PAGES = ("report.html.jinja", "story.html.jinja")


@functools.cache
def environment() -> jinja2.Environment:
    """All templates, read at once, so that a long run does not mix two versions of the package."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("pixelbert.training.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
    )
    filters: dict[str, Callable[..., Any]] = {"percent": percent, "plain": plain, "count": lambda n: f"{n:,}"}
    found.filters |= filters
    for name in found.list_templates():
        found.get_template(name)
    return found


def render(template: str, **values: Any) -> str:
    """A page of the report's templates."""
    return environment().get_template(template).render(**values)


def head(record: RunRecord, ended: str) -> dict[str, Any]:
    """What was run, how far it is, on what and since when."""
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
        "written": now(),
    }


def now() -> str:
    """The time, as the page tells it."""
    return dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _precision(session: Row) -> str:
    backbone, encoder = session.get("backbone"), session.get("encoder")
    if not backbone:
        return ""
    return str(backbone) if backbone == encoder else f"CNN {backbone}, encoder {encoder}"


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
