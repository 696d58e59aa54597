"""One reader a file. A reader yields what an annotation file says, row by row, and looks at no picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelbert.data.formats import karpathy
from pixelbert.data.records import BadRow, Example, Excluded

Reader = Callable[..., Iterator[Example | BadRow | Excluded]]


@dataclass(frozen=True)
class Format:
    """A data format: `locate(source)` finds its files in a folder, `read(file, **options)` yields their rows."""

    locate: Callable[[Path], list[Path]]
    read: Reader
    summary: str
    task: str = "pairs"
    options: tuple[str, ...] = ()
    row_options: dict[str, Any] | None = None


FORMATS: dict[str, Format] = {
    "karpathy": Format(
        karpathy.locate, karpathy.read, "Karpathy split files of COCO, Flickr30K, Flickr8k", options=("merge_restval",)
    ),
}
