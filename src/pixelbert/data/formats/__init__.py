"""One reader a file. A reader yields what an annotation file says, row by row, and looks at no picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pixelbert.data.formats import coco, karpathy, prepared, tabular, visual_genome, webdataset
from pixelbert.data.records import BadRow, Example, Excluded

Reader = Callable[..., Iterator[Example | BadRow | Excluded]]


@dataclass(frozen=True)
class Format:
    """A data format.

    locate:  finds the format's files in a folder; a file is its own answer.
    read:    yields the rows of one such file.
    options: the options of `prepare` that mean something to this format.
    """

    locate: Callable[[Path], list[Path]]
    read: Reader
    summary: str
    options: tuple[str, ...] = ()
    task: str = "pairs"


FORMATS: dict[str, Format] = {
    "karpathy": Format(
        karpathy.locate,
        karpathy.read,
        "Karpathy's split files: COCO, Flickr30K, Flickr8k",
        ("exclude", "merge_restval"),
    ),
    "coco": Format(coco.locate, coco.read, "official COCO captions JSON", ("exclude", "split")),
    "visual_genome": Format(
        visual_genome.locate,
        visual_genome.read,
        "Visual Genome region_descriptions.json with image_data.json",
        ("exclude", "image_data", "split"),
    ),
    "webdataset": Format(webdataset.locate, webdataset.read, "tars as img2dataset writes them", ("split",)),
    "csv": Format(
        tabular.locate_csv, tabular.read_csv, "your own table: image,text", ("columns", "delimiter", "split")
    ),
    "jsonl": Format(tabular.locate_jsonl, tabular.read_jsonl, "your own JSON lines", ("columns", "split")),
    "prepared": Format(prepared.locate, prepared.read, "prepared folders, to put several together", ("split",)),
}
