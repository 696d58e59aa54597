"""One reader a file. A reader yields what an annotation file says, row by row, and looks at no picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pixelbert.data.formats import coco, karpathy, nlvr, prepared, tabular, visual_genome, vqa, vqa_files, webdataset
from pixelbert.data.records import BadRow, Example, Excluded

Reader = Callable[..., Iterator[Example | BadRow | Excluded]]


@dataclass(frozen=True)
class Format:
    """A data format.

    locate:  finds the format's files in a folder; a file is its own answer.
    read:    yields the rows of one such file.
    options: the options of `prepare` that mean something to this format.
    task:    what the rows are for; a function of file and options where the file itself says it.
    pair:    for formats of two files: each first file with its second, or with None.
    """

    locate: Callable[[Path], list[Path]]
    read: Reader
    summary: str
    options: tuple[str, ...] = ()
    task: str | Callable[..., str] = "pairs"
    pair: Callable[[Sequence[Path | str]], list[tuple[Path | str, Path | str | None]]] | None = None


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
    "vqa": Format(
        vqa_files.locate,
        vqa.read,
        "official VQA v2 questions and annotations",
        ("image_map", "split"),
        "vqa",
        vqa_files.pair_files,
    ),
    "nlvr2": Format(nlvr.locate_nlvr2, nlvr.read_nlvr2, "NLVR2: two photos", ("image_map", "split"), "nlvr2"),
    "nlvr": Format(nlvr.locate_nlvr, nlvr.read_nlvr, "NLVR v1: one drawn picture", ("split",), "nlvr"),
    "csv": Format(
        tabular.locate_csv,
        tabular.read_csv,
        "your own table: the columns say the task",
        ("columns", "delimiter", "split"),
        tabular.task_of_csv,
    ),
    "jsonl": Format(
        tabular.locate_jsonl, tabular.read_jsonl, "your own JSON lines", ("columns", "split"), tabular.task_of_jsonl
    ),
    "prepared": Format(
        prepared.locate, prepared.read, "prepared folders, to put several together", ("split",), prepared.task_of
    ),
}
