"""The verbs of the command line: parse, call, map errors to exit codes. No verb does work of its own.

Nothing heavy is imported before a verb runs, so `--help` answers at once. One sentence goes to stderr when something is
wrong, and the exit code says whose turn it is (errors.py); `--debug` shows the traceback instead.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelbert import __version__
from pixelbert.errors import MachineError, UsageError
from pixelbert.exits import INTERRUPTED, explain
from pixelbert.model.threads import sleep_soon
from pixelbert.verbs import add_verbs

if TYPE_CHECKING:
    from rich.console import Console

_EPILOG = "After any verb, --debug shows the traceback of an error."

app = typer.Typer(
    name="pixelbert",
    help="Pixel-BERT: image pixels and words in one network, trained end to end from image-text pairs.",
    epilog="Exit codes: 0 done, 2 command or recipe wrong, 3 data wrong, 4 training stopped itself, "
    "5 checkpoint damaged, 6 the machine refused, 130 interrupted.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
_FORMATS = (
    "karpathy, coco, visual_genome, webdataset, vqa, nlvr2, nlvr, csv, jsonl or prepared; or mix: then a SOURCE is "
    "FORMAT=PATH or FORMAT:SPLIT=PATH."
)
Data = Annotated[str, typer.Option("--data", metavar="DATA", help="Prepared data: a folder that `prepare` wrote.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pixelbert {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog=_EPILOG)
def doctor(as_json: Json = False) -> None:
    """Versions, device, precision, optional parts; what is missing and how to get it."""
    from pixelbert.doctor import examine, show

    facts = examine()
    if as_json:
        _print_json(facts)
    else:
        show(facts, _console())
    if facts["problems"]:
        raise MachineError("; ".join(facts["problems"]))


@app.command(epilog=_EPILOG)
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show all settings of this recipe.")] = None,
    as_json: Json = False,
) -> None:
    """All recipes: paper section, data needed, command, expected score."""
    from pixelbert.recipes.listing import describe, list_recipes, show, text

    found = list_recipes() if name is None else describe(name)
    if as_json:
        _print_json(found)
    elif isinstance(found, dict):
        print(text(found), end="")
    else:
        show(found, _console())


@app.command(epilog=_EPILOG)
def prepare(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help=_FORMATS)],
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Annotation files, tar shards or folders.")],
    out: Annotated[
        str | None, typer.Option(metavar="DATA", help="The folder to write; it appears when it is whole.")
    ] = None,
    images: Annotated[list[str] | None, typer.Option(help="Folder, tar shard or URL of images. Repeatable.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of rows whose file names none.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="List of photos to keep out of training. Repeatable.")
    ] = None,
    merge_restval: Annotated[bool, typer.Option("--merge-restval", help="karpathy: count restval as train.")] = False,
    column: Annotated[
        list[str] | None, typer.Option(help="csv, jsonl: OURS=THEIRS, e.g. image=filename. Repeatable.")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="csv: what stands between columns (default: guessed).")] = None,
    image_data: Annotated[str | None, typer.Option(help="visual_genome: image_data.json.")] = None,
    image_map: Annotated[
        list[str] | None, typer.Option(help="vqa, nlvr2: JSON file from an image's id or name to its file. Repeatable.")
    ] = None,
    val_fraction: Annotated[float, typer.Option(help="Share of images that become val where no split is named.")] = 0.0,
    max_bad: Annotated[
        int | None,
        typer.Option(min=0, help="Give up when more rows are bad (default: list those of pairs; of other tasks 0)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only: open no image, write nothing.")] = False,
    shards: Annotated[bool, typer.Option("--shards", help="Copy the images into tar shards inside --out.")] = False,
    check_images: Annotated[
        str, typer.Option(help="header: type, size, end; full: decode; none: find only.")
    ] = "header",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace prepared data at --out.")] = False,
) -> None:
    """Any supported format to prepared data: counts, and a list of bad rows."""
    from pixelbert.data.prepare import prepare as call
    from pixelbert.data.prepare import survey

    reading: dict[str, Any] = {
        "images": images or (),
        "split": split,
        "exclude": exclude or (),
        "merge_restval": merge_restval,
        "columns": _mapping(column or [], "--column"),
        "delimiter": delimiter,
        "image_data": image_data,
        "image_map": image_map or (),
        "val_fraction": val_fraction,
        "max_bad": max_bad,
        "console": _console(),
    }
    if dry_run:
        survey(format, sources, **reading)
    elif out is None:
        raise UsageError("prepare: missing option '--out' (only --dry-run goes without)")
    else:
        call(format, sources, out, shards=shards, check_images=check_images, overwrite=overwrite, **reading)


@app.command(epilog=_EPILOG)
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name of `pixelbert recipes`, or a YAML file.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="The run folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.")] = None,
    from_run: Annotated[
        Path | None, typer.Option("--from", metavar="RUN0", help="Start from this run's weights.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    blind: Annotated[bool, typer.Option("--blind", help="Replace every image by a constant (the baseline).")] = False,
) -> None:
    """Train a recipe; --resume continues to the same bits."""
    from pixelbert.inference.attention_examples import write_attention
    from pixelbert.training.loop import train as call

    _without_bars()
    call(
        recipe,
        data,
        out,
        from_run=from_run,
        resume=resume,
        overrides=overrides or (),
        blind=blind,
        attend=write_attention,
    )


@app.command(epilog=_EPILOG)
def evaluate(
    data: Data,
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder that `train` wrote.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score this file of predictions instead of a run.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split to score.")] = "val",
    blind: Annotated[Path | None, typer.Option(metavar="RUN", help="The blind run to stand beside.")] = None,
    images: Annotated[int, typer.Option(min=0, help="So many of the split's first images; 0 takes all.")] = 0,
    captions_per_image: Annotated[int, typer.Option(min=1, help="So many captions of each image.")] = 5,
    exact_images: Annotated[int, typer.Option(min=0, help="Score all pairs of so many images; 0 leaves it out.")] = 0,
    shortlist: Annotated[int, typer.Option(min=0, help="Re-rank so many images a caption; 0 leaves it out.")] = 0,
    folds: Annotated[
        int, typer.Option(min=0, help="Retrieval: rank each so many images alone, take the mean (COCO 1K: 1000).")
    ] = 0,
    middle_view: Annotated[
        bool, typer.Option("--middle-view", help="Pooled vectors of a photo and of its middle, their mean.")
    ] = False,
    model: Annotated[str, typer.Option(help="best (by the recipe's measure on val) or last.")] = "best",
    as_json: Json = False,
) -> None:
    """Scores of a run on held-out data, and a file with every record, in RUN/evaluation/SPLIT."""
    if (run is None) == (predictions is None):
        raise UsageError("evaluate: give either a RUN or --predictions FILE; see pixelbert evaluate --help")
    if predictions is not None:
        from pixelbert.training.predict import score_predictions

        result = score_predictions(predictions, data, split=split)
    else:
        from pixelbert.inference.attention_examples import write_attention
        from pixelbert.training.evaluate import evaluate as call

        _without_bars()
        result = call(
            run,  # type: ignore[arg-type]
            data,
            split=split,
            blind=blind,
            images=images,
            captions_per_image=captions_per_image,
            exact_images=exact_images,
            shortlist=shortlist,
            folds=folds,
            middle_view=middle_view,
            model=model,
            attend=write_attention,
        )
    if as_json:
        _print_json(result)
    else:
        _print_figures(result)


@app.command(epilog=_EPILOG)
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `train` wrote.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write, in one piece, checked.")],
    split: Annotated[str, typer.Option(help="The split to answer; it needs no answers or labels.")] = "test",
    shortlist: Annotated[int, typer.Option(min=0, help="Retrieval: re-rank so many images a caption; 0 = all.")] = 0,
    model: Annotated[str, typer.Option(help="best (by the recipe's measure on val) or last.")] = "best",
    as_json: Json = False,
) -> None:
    """The file that the evaluation server takes: an answer to every record of a split."""
    from pixelbert.training.predict import predict as call

    _without_bars()
    result = call(run, data, out, split=split, shortlist=shortlist, model=model)
    if as_json:
        _print_json(result)
    else:
        print(f"{result['file']}: {result['records']:,} records of {result['split']}, {result['minutes']} minutes")


@app.command(epilog=_EPILOG)
def bench(
    sizes: Annotated[
        list[str] | None, typer.Argument(metavar="SIZE", help="small, r50, x152 (all of them), ratios, or answer.")
    ] = None,
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="The run that `bench answer` asks.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, after one that warms up.")] = 2,
    as_json: Json = False,
) -> None:
    """Time and memory of a real training step at full size; what saves work, as ratios; or the seconds to an answer."""
    from pixelbert.bench import run_bench

    if sizes == ["answer"]:
        from pixelbert.bench.answer import run_answer

        if run is None:
            raise UsageError("bench answer: which run? --run RUN")
        parts = run_answer(run, steps)
        _print_json(parts) if as_json else _print_rows(parts)
        return

    if sizes == ["ratios"]:
        from pixelbert.bench.ratios import run_ratios

        ratios = run_ratios(steps)
        _print_json(ratios) if as_json else _print_rows(ratios)
        return
    rows = run_bench(sizes or None, steps)
    if not rows:
        raise UsageError(
            f"bench: no size '{' '.join(sizes or [])}'; valid names: small, r50, x152, or alone: ratios, answer"
        )
    _print_json(rows) if as_json else _print_rows(rows)
    failed = [f"{row['size']}: {row['error']}" for row in rows if "error" in row]
    if failed:
        raise MachineError("; ".join(failed))


@app.command(epilog=_EPILOG)
def ablate(
    pairs: Annotated[Path, typer.Option("--pairs", metavar="DATA", help="Image-text pairs: pretraining, retrieval.")],
    vqa: Annotated[Path, typer.Option("--vqa", metavar="DATA", help="Questions with answers.")],
    nlvr2: Annotated[Path, typer.Option("--nlvr2", metavar="DATA", help="Statements about two pictures.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for runs and table; the same command goes on there.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to every recipe.")] = None,
    size: Annotated[str, typer.Option(help="The recipes pretrain-SIZE, vqa-SIZE, ...: small, tiny, r50.")] = "small",
    row: Annotated[
        list[int] | None, typer.Option(help="A row of Table 6; 1 to 5, and 6 with --larger. Repeatable.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; 0 alone. Repeatable.")] = None,
    pretraining_pairs: Annotated[int, typer.Option(min=1, help="Pairs seen in pretraining.")] = 20_000,
    examples: Annotated[int, typer.Option(min=1, help="Questions and statements seen in fine-tuning.")] = 8_000,
    retrieval_examples: Annotated[int, typer.Option(min=1, help="Pairs seen in retrieval, each with 20 more.")] = 2_000,
    retrieval_images: Annotated[int, typer.Option(min=2, help="Held-out images that are ranked.")] = 200,
    larger: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="What makes row 6's CNN larger. Repeatable.")
    ] = None,
    pretraining: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Changes to pretraining alone. Repeatable.")
    ] = None,
) -> None:
    """The paper's Table 6: rows of pretraining through the three tasks, resumable, beside the paper's numbers."""
    from pixelbert.bench.ablate import Ablation
    from pixelbert.bench.ablate import ablate as call

    _without_bars()
    asked = Ablation(
        data={"pairs": str(pairs), "vqa": str(vqa), "nlvr2": str(nlvr2)},
        size=size,
        rows=tuple(row or ((1, 2, 3, 4, 5, 6) if larger else (1, 2, 3, 4, 5))),
        seeds=tuple(seed or (0,)),
        pairs=pretraining_pairs,
        examples=examples,
        retrieval_examples=retrieval_examples,
        retrieval_images=retrieval_images,
        larger=tuple(larger or ()),
        overrides=tuple(overrides or ()),
        pretraining=tuple(pretraining or ()),
    )
    print(call(out, asked).table)


@app.command(epilog=_EPILOG)
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="The folder for scenes, data, runs and report.")] = Path(
        "runs/quickstart"
    ),
    seed: Annotated[int, typer.Option(help="Of the scenes and of the training.")] = 0,
    tidy: Annotated[bool, typer.Option("--tidy", help="Keep only the run and its report.")] = False,
) -> None:
    """Draw scenes, train the tiny size on them, report: minutes on a CPU, no download."""
    from pixelbert.bench.quickstart.story import run_quickstart

    _without_bars()
    run_quickstart(out, seed=seed, keep=not tidy)


@app.command(epilog=_EPILOG)
def check_attention(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A pretraining run that `train` wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="COCO's layout with instances, or drawn scenes.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write every figure as JSON.")] = None,
    part: Annotated[
        str | None, typer.Option(help="Such as val2014 or val; all, of drawn scenes all but train.")
    ] = None,
    photos: Annotated[int, typer.Option(min=0, help="So many pictures, the first ones; 0 takes all.")] = 0,
    method: Annotated[
        list[str] | None, typer.Option(help="Measure this method beside plain attention. Repeatable; without it, all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How much of the attention falls on the object that a word names, against chance, for every method and layer."""
    from pixelbert.inference.attention_check import check_run, table

    _without_bars()
    tell = lambda line: print(line, file=sys.stderr)  # noqa: E731
    result = check_run(run, folder, out=out, part=part, photos=photos, methods=method, tell=tell)
    _print_json(result) if as_json else print(table(result))


add_verbs(app, _EPILOG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. Never raises, except with `--debug`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]  # also after the verb
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold any bytes
    if not arguments:
        arguments = ["--help"]
    sleep_soon()
    try:
        code = app(args=arguments, prog_name="pixelbert", standalone_mode=False)
        code = code if isinstance(code, int) else 0
        sys.stdout.flush()  # here, where a reader that went away can be dealt with
        if code != INTERRUPTED:
            return code
        error: BaseException = KeyboardInterrupt()  # typer turned it into a code
    except SystemExit as leaving:  # typer's answer to a reader that went away
        return leaving.code if isinstance(leaving.code, int) else 1
    except (Exception, KeyboardInterrupt) as caught:
        error = caught
    if debug and not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
    code, sentence = explain(error, arguments)
    if sentence:
        print(f"pixelbert: {sentence}", file=sys.stderr)
    return code


def _mapping(pairs: Sequence[str], option: str) -> dict[str, str]:
    """{"image": "filename"} from ["image=filename"]."""
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"{option} {pair}: expected OURS=THEIRS, such as {option} image=filename")
    return dict(pair.split("=", 1) for pair in pairs)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _without_bars() -> None:
    """No bars of transformers for each file it saves or loads: they would stand between our own lines."""
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_figures(result: dict[str, Any]) -> None:
    """The figures of an evaluation, one a line, after a line that says of what."""
    what = f"{result['run']}, {result['model']} model, on {result['data']}, split {result['split']}"
    print(f"{what}: {result['images']:,} images, {result['texts']:,} texts, {result['minutes']} minutes")
    for name, value in result["figures"].items():
        print(f"  {name:32} {value:8.2f}")


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """A block a row: its first value, then the others by name."""
    for row in rows:
        (_, title), *values = row.items()
        print(title)
        for name, value in values:
            print(f"  {name.replace('_', ' '):20} {value}")
