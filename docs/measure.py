"""Run the commands behind docs/results.json: those of docs/measurements.yaml, two at a time, each on its own core.

python docs/measure.py                 whatever is not done yet, in the order of the file
python docs/measure.py vqa pairs       these and what they need, in this order
python docs/measure.py --list          what is done, and what is left

A measurement that was stopped goes on: a run continues from its checkpoint, finished ones are not run again
(runs/measured.json). Logs stand in runs/logs/. Figures go into docs/results.json as each evaluation ends, tables
beside it. A job has its share of the cores as threads, unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from make_results import commit, record
from make_results import main as make_tables

from pixelbert.model.precision import detect

DOCS = Path(__file__).parent
STATE, SPENT, LOGS = Path("runs/measured.json"), Path("runs/spent.json"), Path("runs/logs")


def load_jobs() -> dict[str, dict[str, Any]]:
    """Name -> {run, needs, record}, in the file's order. Every need is a job."""
    jobs: dict[str, dict[str, Any]] = yaml.safe_load((DOCS / "measurements.yaml").read_text(encoding="utf-8"))
    for name, job in jobs.items():
        missing = set(job.get("needs", ())) - jobs.keys()
        if missing:
            raise SystemExit(f"measurements.yaml: {name} needs {', '.join(sorted(missing))}, which is not there")
    return jobs


def with_needs(jobs: dict[str, dict[str, Any]], names: list[str]) -> list[str]:
    """The jobs asked for, in that order (all, in the file's, when none is named), each after what it needs."""
    wanted: dict[str, None] = {}

    def add(name: str) -> None:
        if name not in jobs:
            raise SystemExit(f"no measurement '{name}'; see --list")
        for need in jobs[name].get("needs", []):
            add(need)
        wanted[name] = None

    for name in names or jobs:
        add(name)
    return list(wanted)


def command_of(run: str) -> list[str]:
    """The command as it is started: a training run that has a checkpoint goes on."""
    words = shlex.split(run)
    if words[:2] == ["pixelbert", "train"]:
        out = Path(words[words.index("--out") + 1])
        if any((out / "checkpoints").glob("step-*")):
            start = words.index("--from") if "--from" in words else None
            if start is not None:
                del words[start : start + 2]
            words.append("--resume")
        elif out.exists():
            shutil.rmtree(out)  # stopped before its first checkpoint
    return words


def keep_figures(jobs: dict[str, dict[str, Any]], name: str, done: dict[str, Any]) -> None:
    """The figures of a finished evaluation, with the minutes of the training before it."""
    for wanted in jobs[name].get("record", []):
        trained = [need for need in jobs[name].get("needs", []) if jobs[need]["run"].startswith("pixelbert train")]
        minutes = sum(done[need]["minutes"] for need in trained[:1]) or done[name]["minutes"]
        command = "; ".join([*(jobs[need]["run"] for need in trained), jobs[name]["run"]])
        targets = [f"{figure}={target}" for figure, target in wanted.get("targets", {}).items()]
        renames = [f"{figure}={new}" for figure, new in wanted.get("rename", {}).items()]
        record(Namespace(
            file=wanted["file"], prefix=wanted.get("prefix", ""), command=command, rename=renames, target=targets,
            only=wanted.get("only", []), minutes=round(minutes, 1), machine=None, note=wanted.get("note", ""),
        ))  # fmt: skip
    if table := jobs[name].get("table"):
        keep_table(table, jobs[name]["run"], done[name]["minutes"])


def keep_table(table: dict[str, str], command: str, minutes: float) -> None:
    """A table that a command wrote, kept in docs/ with how it came about below it."""
    told = f"{minutes:g} minutes, {detect().name}, commit {commit()}, {date.today().isoformat()}"
    text = Path(table["from"]).read_text(encoding="utf-8").strip()
    note = f"; {table['note']}" if "note" in table else ""
    (DOCS / table["to"]).write_text(f"{text}\n\n{told}{note}:\n\n    {command}\n", encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """What an earlier call left, if it did."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def save(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def run_all(jobs: dict[str, dict[str, Any]], names: list[str], workers: int) -> int:
    """Run the jobs; 1 when one failed. Ctrl-C or SIGTERM stops them where they can go on later."""
    done, spent = load(STATE), load(SPENT)  # minutes of jobs that ended, and of every job until now
    failed: set[str] = set()
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    LOGS.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))} | os.environ

    def ready() -> list[str]:
        open_ones = [name for name in names if name not in done and name not in failed and name not in running]
        for name in open_ones:
            if failed & set(jobs[name].get("needs", ())):
                failed.add(name)
        return [n for n in open_ones if n not in failed and all(need in done for need in jobs[n].get("needs", ()))]

    try:
        while running or ready():
            for name in ready()[: workers - len(running)]:
                log = (LOGS / f"{name}.log").open("ab")
                process = subprocess.Popen(command_of(jobs[name]["run"]), stdout=log, stderr=log, env=environment)
                running[name] = (process, time.monotonic() - 60 * spent.get(name, 0))
                print(f"{time.strftime('%H:%M')} {name}: started", flush=True)
            time.sleep(1)
            for name, (process, started) in list(running.items()):
                minutes = (time.monotonic() - started) / 60
                if process.poll() is None:
                    if minutes > spent.get(name, 0) + 1:
                        spent[name] = minutes
                        save(SPENT, spent)
                    continue
                del running[name]
                spent.pop(name, None)
                print(f"{time.strftime('%H:%M')} {name}: exit {process.returncode}, {minutes:.1f} minutes", flush=True)
                if process.returncode:
                    failed.add(name)
                    continue
                done[name] = {"minutes": round(minutes, 1)}
                save(STATE, done)
                save(SPENT, spent)
                keep_figures(jobs, name, done)
    except KeyboardInterrupt:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
        return 130
    print("failed: " + ", ".join(sorted(failed)) if failed else "all done")
    return int(bool(failed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    jobs = load_jobs()
    names = with_needs(jobs, args.names)
    if args.list:
        done = load(STATE)
        for name in names:
            print(f"{'done' if name in done else '    '}  {name:24} {jobs[name]['run']}")
        return 0
    for stop in (signal.SIGINT, signal.SIGTERM):  # a shell ignores SIGINT for what it starts in the background
        signal.signal(stop, signal.default_int_handler)
    code = run_all(jobs, names, args.workers)
    sys.argv = sys.argv[:1]
    return code or make_tables()


if __name__ == "__main__":
    sys.exit(main())
