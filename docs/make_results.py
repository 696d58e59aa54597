"""The tables of docs/results.md, made from docs/results.json and from the tables that docs/measure.py keeps.

python docs/make_results.py                       write the tables anew
python docs/make_results.py --check               exit 1 when a table is not what the figures say
python docs/make_results.py record FILE --prefix flickr8k.val --command "..." [--rename a=b] [--minutes 40]
                                                  take over the figures of an evaluation (figures.json)
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
FIELDS = ("name", "value", "unit", "command", "minutes", "machine", "commit", "date", "note")
_FILE = re.compile(r"(<!-- table: (?P<file>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_GLANCE = re.compile(r"(<!-- targets -->\n).*?(<!-- end -->)", re.DOTALL)
_BLOCK = re.compile(r"(<!-- figures: (?P<names>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(path: Path) -> list[dict[str, Any]]:
    """The figures, in the order they were recorded."""
    return json.loads(path.read_text(encoding="utf-8"))["figures"] if path.exists() else []


def table(figures: list[dict[str, Any]], patterns: str) -> str:
    """For each command whose figures fit a pattern (`a.b.*` or a whole name): what was measured, how, on what."""
    chosen = [f for pattern in patterns.split() for f in figures if _fits(pattern, f["name"])]
    commands = list(dict.fromkeys(f["command"] for f in chosen))
    return "\n".join(_block([f for f in chosen if f["command"] == command]) for command in commands)


def _block(figures: list[dict[str, Any]]) -> str:
    """The figures of one command; what all their notes say stands once, below."""
    notes = [figure["note"].split("; ") for figure in figures]
    shared = [part for part in notes[0] if part and all(part in other for other in notes)]
    lines = ["| figure | value | |", "|---|---|---|"]
    for figure, note in zip(figures, notes, strict=True):
        own = [verdict(figure)] if target_of(figure) else []
        own += [part for part in note if part not in shared and not _TARGET.search(part)]
        lines.append(f"| `{figure['name']}` | **{_value(figure)}** {figure['unit']} | {'; '.join(own)} |")
    shared = [part for part in shared if not _TARGET.search(part)]
    how = dict.fromkeys(f"{f['minutes']:g} minutes, {f['machine']}, commit {f['commit']}, {f['date']}" for f in figures)
    return "\n".join([*lines, "", "; ".join([*how, *shared]) + ":", "", f"    {figures[0]['command']}", ""])


_TARGET = re.compile(r"(?P<kind>floor|aim|at most) (?P<value>[\d.]+)")


def target_of(figure: dict[str, Any]) -> dict[str, float]:
    """What was asked of a figure, from its note: `floor`, `aim`, `at most`."""
    return {m["kind"]: float(m["value"].rstrip(".")) for m in _TARGET.finditer(figure["note"])}


def verdict(figure: dict[str, Any]) -> str:
    """How a figure stands to its target."""
    target, value = target_of(figure), figure["value"]
    if most := target.get("at most"):
        return f"within {most:g}" if value <= most else f"**more than {most:g}**"
    floor, aim = target.get("floor"), target.get("aim")
    if aim is not None and value >= aim:
        return f"reaches the aim of {aim:g}"
    left = [f"aim {aim:g}"] if aim is not None else []
    if floor is not None:
        return ", ".join(
            [f"**below the floor of {floor:g}**" if value < floor else f"above the floor of {floor:g}", *left]
        )
    return f"below the aim of {aim:g}"


def glance(figures: list[dict[str, Any]]) -> str:
    """Every figure that has a target, beside the blind model's and that of the same without our pretraining."""
    value_of = {figure["name"]: _value(figure) for figure in figures}
    lines = ["| figure | measured | blind | no pretraining | asked |", "|---|---|---|---|---|"]
    for figure in figures:
        if target_of(figure):
            beside = " | ".join(value_of.get(f"{figure['name']}_{other}", "") for other in ("blind", "no_pretraining"))
            measured = f"**{_value(figure)}** {figure['unit']}"
            lines.append(f"| `{figure['name']}` | {measured} | {beside} | {verdict(figure)} |")
    return "\n".join([*lines, ""])


def _value(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.2f}" if isinstance(figure["value"], float) else str(figure["value"])


def commit() -> str:
    """The code that was measured: MEASURED_COMMIT where a copy of it runs, else the present one."""
    if measured := os.environ.get("MEASURED_COMMIT"):
        return measured
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    return head.stdout.strip()


def _fits(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) is not None


def render(text: str, figures: list[dict[str, Any]]) -> str:
    """The page with every table between its marks made anew."""
    patterns = [pattern for block in _BLOCK.finditer(text) for pattern in block["names"].split()]
    in_order = {f["name"]: f for pattern in patterns for f in figures if _fits(pattern, f["name"])}
    text = _GLANCE.sub(lambda m: m[1] + glance(list(in_order.values())) + m[2], text)
    text = _FILE.sub(lambda m: m[1] + kept_table(DOCS / m["file"]) + m[3], text)
    return _BLOCK.sub(lambda m: m[1] + table(figures, m["names"]) + m[3], text)


def kept_table(path: Path) -> str:
    """A table that a command wrote (measure.py keeps it), or that it was not run."""
    return path.read_text(encoding="utf-8") if path.exists() else "Not run yet.\n"


def calibration_errors(result: dict[str, Any]) -> dict[str, float]:
    """The expected calibration error of an evaluation that calibrated, in percent, as stated and after."""
    found = result.get("calibration", {})
    return {f"calibration_error_{when}": 100 * found[f"ece_{when}"] for when in ("before", "after") if found}


def record(args: argparse.Namespace) -> None:
    """Put an evaluation's figures into results.json, in place of older ones of the same name."""
    result = json.loads(Path(args.file).read_text(encoding="utf-8"))
    names = dict(pair.split("=", 1) for pair in args.rename)
    targets = dict(pair.split("=", 1) for pair in args.target)
    figures = result["figures"] | calibration_errors(result)
    new = [
        {
            "name": names.get(key, f"{args.prefix}.{key}"),
            "value": round(value, 2),
            "unit": result.get("unit", "percent" if "gain" not in key else "points"),
            "command": args.command,
            "minutes": args.minutes if args.minutes is not None else result["minutes"],
            "machine": args.machine or result["machine"],
            "commit": commit(),
            "date": result["date"],
            "note": "; ".join(part for part in (targets.get(key, ""), args.note) if part),
        }
        for key, value in figures.items()
        if not args.only or key in args.only
    ]
    replaced = {figure["name"] for figure in new}
    figures = [figure for figure in load(DOCS / "results.json") if figure["name"] not in replaced] + new
    (DOCS / "results.json").write_text(json.dumps({"figures": figures}, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    verbs = parser.add_subparsers(dest="verb")
    taking = verbs.add_parser("record")
    taking.add_argument("file")
    taking.add_argument("--prefix", required=True)
    taking.add_argument("--command", required=True)
    taking.add_argument("--rename", action="append", default=[])
    taking.add_argument("--only", action="append", default=[])
    taking.add_argument("--target", action="append", default=[], help="FIGURE=what the issue asks of it")
    taking.add_argument("--minutes", type=float)
    taking.add_argument("--machine")
    taking.add_argument("--note", default="")
    args = parser.parse_args()
    if args.verb == "record":
        record(args)
    page = DOCS / "results.md"
    old = page.read_text(encoding="utf-8")
    new = render(old, load(DOCS / "results.json"))
    if args.check:
        return int(old != new)
    page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
