"""Results of the Predictor for people: a few lines, probabilities as bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pixelbert.inference.answers import Answer, Attention, Filling, Guess, Judgement, Match, Ranked, Result

_OneText = TypeVar("_OneText", Answer, Match)

_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"
_MOST_ROWS = 20
_MOST_WORDS = 8


def bar(probability: float, width: int = _WIDTH) -> str:
    """A bar of eighths of a character, `width` characters for 1, with the rest as blanks."""
    eighths = round(probability * width * 8)
    whole, part = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[part] if part else "")).ljust(width)


def percent(probability: float) -> str:
    """Whole percent; the ends are told apart from certainty."""
    if probability < 0.005:
        return "< 1 %"
    return "> 99 %" if probability > 0.995 else f"{100 * probability:.0f} %"


def show_answers(answers: Answer | list[Answer]) -> None:
    """The answer, or that it is not known; the best guesses. Of several, each below its question."""
    _each(answers, _show_answer)


def show_matches(matches: Match | list[Match]) -> None:
    """The verdict and its chance; of several, each below its sentence."""
    _each(matches, _show_match)


def _show_answer(answer: Answer) -> None:
    _title(answer.said, "yellow" if answer.knows is False else "green")
    _bars([(guess.text, guess.probability) for guess in answer.guesses], weak=answer.knows is False)
    _remarks(answer)


def _show_match(match: Match) -> None:
    _verdict(match.matches, "they belong together", "they do not belong together", match.probability)
    _remarks(match)


def show_judgement(judgement: Judgement) -> None:
    """True or false and its chance."""
    _verdict(judgement.true, "true", "false", judgement.probability)
    _remarks(judgement)


def show_filling(filling: Filling) -> None:
    """The filled text; of each place the guesses with the picture, beside them those without."""
    _title(filling.filled, "green")
    for place in filling.places:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("  with the picture")
        table.add_column("")
        table.add_column("without")
        table.add_column("")
        for i in range(max(len(place.guesses), len(place.without))):
            table.add_row(*_guess(place.guesses, i, "cyan"), *_guess(place.without, i, "dim"))
        _console().print(table)
    _cut(filling)


def show_ranking(ranking: Sequence[Ranked]) -> None:
    """The best, with their chance of a match."""
    _bars([(one.name, one.probability) for one in ranking[:_MOST_ROWS]])
    if len(ranking) > _MOST_ROWS:
        _console().print(f"  [dim]and {len(ranking) - _MOST_ROWS} more[/dim]")
    if ranking and not ranking[0].calibrated:
        _not_calibrated()


def show_attention(found: Attention | Sequence[Attention]) -> None:
    """Of each word how much of its attention goes to the photo, and how much its brightest cell has of that."""
    console = _console()
    for one in found if isinstance(found, Sequence) else [found]:
        cells = [weight for row in one.weights for weight in row]
        most = max(cells) * len(cells)
        photo = "" if one.to_photo is None else f", {percent(one.to_photo)} of its attention on the photo"
        told = f"brightest cell {most:.1f} x even{photo}" if most > 0 else "found nothing: no cell speaks for it"
        console.print(Text.assemble("  ", (one.word, "bold"), f"  {told}"))


def show_unknown(words: Sequence[str]) -> None:
    """Which words the model reads as «unknown», where there are any."""
    if words:
        more = f" and {len(words) - _MOST_WORDS} more" if len(words) > _MOST_WORDS else ""
        _console().print(Text(f"  not in the run's vocabulary: {', '.join(words[:_MOST_WORDS])}{more}", style="dim"))


def _verdict(yes: bool, true: str, false: str, probability: float) -> None:
    _title(true if yes else false, "green" if yes else "yellow")
    _bars([(true, probability), (false, 1 - probability)])


def _each(results: _OneText | list[_OneText], show: Callable[[_OneText], None]) -> None:
    if not isinstance(results, list):
        show(results)
        return
    for place, result in enumerate(results):
        _console().print(Text(("\n" if place else "") + result.text, style="dim"))
        show(result)


def _title(text: str, style: str) -> None:
    _console().print(Text(text, style=f"bold {style}"))


def _bars(rows: Sequence[tuple[str, float]], weak: bool = False) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, probability in rows:
        style = "dim" if weak else "cyan"
        table.add_row(Text(f"  {name}"), Text(bar(probability), style=style), Text(percent(probability)))
    _console().print(table)


def _guess(guesses: Sequence[Guess], place: int, style: str) -> tuple[Text, Text]:
    if place >= len(guesses):
        return Text(), Text()
    guess = guesses[place]
    line = Text.assemble((bar(guess.probability, _WIDTH // 2), style), f" {percent(guess.probability):>6}")
    return Text(f"  {guess.text}"), line


def _cut(result: Result) -> None:
    if result.cut:
        _console().print("  [dim]the text is longer than the model reads: its end was left out[/dim]")


def _remarks(result: Result) -> None:
    _cut(result)
    if not result.calibrated:
        _not_calibrated()


def _not_calibrated() -> None:
    _console().print("  [dim]not calibrated: pixelbert evaluate RUN --data DATA does that[/dim]")


def _console() -> Console:
    return Console(highlight=False)
