"""The verbs that ask one run about pictures: `ask`, `match`, `compare`, `fill`, `rank`, `attend`.

Like `cli.py`: parse, call, show. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import atexit
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelbert.errors import UsageError

if TYPE_CHECKING:
    from pixelbert.inference.predictor import Predictor

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `train` wrote.")]
Photo = Annotated[str, typer.Argument(metavar="IMAGE", help="A picture's file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Timing = Annotated[bool, typer.Option("--timing", help="Tell on stderr where the time went.")]
Urls = Annotated[bool, typer.Option("--allow-urls", help="Open pictures from http and https addresses.")]
Top = Annotated[int, typer.Option(min=1, help="So many guesses.")]


def add_verbs(app: typer.Typer, epilog: str) -> None:
    """Put the verbs into the command line."""
    for verb in (ask, match, compare, fill, rank, attend):
        app.command(epilog=epilog)(verb)


def ask(
    run: Run,
    image: Photo,
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION...", help='Such as "What is the dog doing?"; one or several.')
    ],
    top: Top = 3,
    as_json: Json = False,
    timing: Timing = False,
    allow_urls: Urls = False,
) -> None:
    """Answer questions about a picture, with the chance that the answer is right, or say that it is not known."""
    asked = _one_or_several(questions)
    _answer(run, lambda p: p.ask(image, asked, top=top), "show_answers", as_json, timing, allow_urls, *questions)


def match(
    run: Run,
    image: Photo,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="A sentence, or several.")],
    as_json: Json = False,
    timing: Timing = False,
    allow_urls: Urls = False,
) -> None:
    """Say whether a sentence and a picture belong together."""
    told = _one_or_several(texts)
    _answer(run, lambda p: p.match(image, told), "show_matches", as_json, timing, allow_urls, *texts)


def compare(
    run: Run,
    images_and_statement: Annotated[
        list[str], typer.Argument(metavar="LEFT [RIGHT] STATEMENT", help="One or two pictures, then the statement.")
    ],
    as_json: Json = False,
    timing: Timing = False,
    allow_urls: Urls = False,
) -> None:
    """Say whether a statement about two pictures (or one) is true."""
    *images, statement = images_and_statement
    if len(images) not in (1, 2):
        raise UsageError(f"compare: {len(images)} pictures given; it takes LEFT RIGHT STATEMENT, or IMAGE STATEMENT")
    right = images[1] if len(images) == 2 else None
    _answer(
        run, lambda p: p.compare(images[0], right, statement), "show_judgement", as_json, timing, allow_urls, statement
    )


def fill(
    run: Run,
    image: Photo,
    text: Annotated[str, typer.Argument(metavar="TEXT", help='With [MASK] or ___, such as "a ___ on a beach".')],
    top: Top = 5,
    as_json: Json = False,
    timing: Timing = False,
    allow_urls: Urls = False,
) -> None:
    """Fill the hidden words of a sentence about a picture; beside it what the sentence alone suggests."""
    _answer(run, lambda p: p.fill(image, text, top=top), "show_filling", as_json, timing, allow_urls, text)


def rank(
    run: Run,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Pictures for one --text, or one picture.")],
    texts: Annotated[list[str], typer.Option("--text", help="A sentence. Repeatable: then sentences are ranked.")],
    as_json: Json = False,
    timing: Timing = False,
    allow_urls: Urls = False,
) -> None:
    """Order pictures by how well they fit a sentence, or sentences by how well they fit a picture."""
    _answer(run, lambda p: p.rank(images, texts), "show_ranking", as_json, timing, allow_urls, *texts)


def attend(
    run: Run,
    image: Photo,
    sentence: Annotated[str, typer.Argument(metavar="SENTENCE", help="A sentence about the picture.")],
    word: Annotated[str | None, typer.Option(help="A word, or several in a row; without it, all.")] = None,
    layer: Annotated[int, typer.Option(help="Of the Transformer, from 1.")] = 1,
    head: Annotated[int | None, typer.Option(help="From 1; without it all heads averaged.")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="attention, rollout, gradient-match or -word, occlusion-match or -word, similarity, nearness."
        ),
    ] = "attention",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the picture here (PNG).")] = None,
    as_json: Json = False,
    timing: Timing = False,
    allow_urls: Urls = False,
) -> None:
    """Draw where the network looks in a picture for a word of a sentence."""
    options: dict[str, Any] = {"layer": layer, "head": head, "method": method}
    if out is not None:
        from pixelbert.data.files import check_picture

        check_picture(out)

    def call(predictor: Predictor) -> Any:
        if out is None:
            return predictor.attend(image, sentence, word, **options)
        from pixelbert.inference.attention_pictures import write_png

        found, drawn = predictor.attend_and_draw(image, sentence, word, **options)
        write_png(out, drawn)
        return found

    _answer(run, call, "show_attention", as_json, timing, allow_urls, sentence)
    if out is not None and not as_json:
        print(f"  {out}")


@contextmanager
def _no_collector() -> Iterator[None]:
    """Garbage collection off: imports leave none, and looking for it is a sixth of their time (docs/predictor.md)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _one_or_several(texts: list[str]) -> str | list[str]:
    """One text alone: its result is no list then."""
    return texts[0] if len(texts) == 1 else texts


def _answer(
    run: Path, call: Callable[[Predictor], Any], show: str, as_json: bool, timing: bool, allow_urls: bool, *texts: str
) -> None:
    """Open the run, call, print, with what the model cannot read of the texts; the time of each part when wanted."""
    times = [time.perf_counter()]
    atexit.register(gc.freeze)  # the process ends: a last look through everything takes a second and frees nothing
    with _no_collector():
        from pixelbert.inference.predictor import Predictor

        times.append(time.perf_counter())
        predictor = Predictor.from_pretrained(run, allow_urls=allow_urls)
        times.append(time.perf_counter())
    result = call(predictor)
    times.append(time.perf_counter())
    if as_json:
        plain = [r.to_dict() for r in result] if isinstance(result, list) else result.to_dict()
        print(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        from pixelbert.inference import shown

        getattr(shown, show)(result)
        shown.show_unknown(predictor.unknown_words(*texts))
    if timing:
        parts = zip(("imports", "opening the run", "answer"), times, times[1:], strict=False)
        print("  ".join(f"{name} {end - start:.2f} s" for name, start, end in parts), file=sys.stderr)
