"""Karpathy's split files: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json.

Karpathy and Fei-Fei, "Deep visual-semantic alignments for generating image descriptions", 2015. One object:
`{"images": [{"filename", "filepath" (COCO), "cocoid" (COCO), "imgid", "split", "sentids", "sentences": [{"raw",
"tokens", "imgid", "sentid"}]}], "dataset"}`. Splits: train, val, test, and for COCO restval, the part of val2014
that is in neither val nor test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pixelbert.data.files import OnRead
from pixelbert.data.formats.common import (
    NoText,
    RowError,
    as_id,
    canonical_split,
    find_annotations,
    json_items,
    known_split,
)
from pixelbert.data.formats.exclusion import Exclusions, coco_flickr_ids, flickr_set
from pixelbert.data.records import BadRow, Example, Excluded
from pixelbert.errors import DataError, UsageError

PATTERNS = ("dataset_*.json", "dataset_*.json.gz", "dataset.json", "dataset.json.gz")


def locate(source: Path) -> list[Path]:
    """The split file of a folder. Raises UsageError when it holds several: they are different data sets."""
    found = find_annotations(source, PATTERNS, "Karpathy split file")
    if len(found) > 1:
        raise UsageError(f"{source}: holds {', '.join(p.name for p in found)}; name the one you mean")
    return found


def read(
    source: Path,
    *,
    merge_restval: bool = False,
    exclude: Exclusions | None = None,
    notes: list[str] | None = None,
    on_read: OnRead | None = None,
    **_: Any,
) -> Iterator[Example | BadRow | Excluded]:
    """One example a sentence; id = sentid, image = filepath/filename.

    `merge_restval` counts restval as train. `exclude` drops photos from train and restval only: a photo of val or
    test is no leak in its own set. Raises DataError when the file is damaged or is no Karpathy file.
    """
    path = locate(source)[0]
    flickr_of = coco_flickr_ids(path) if exclude and exclude.flickr_ids else {}
    number, unmatched = -1, 0
    for number, image in enumerate(json_items(path, "images.item", on_read)):
        place = f"image {number}"
        try:
            examples = _examples(image, path, place, merge_restval)
        except RowError as error:
            yield BadRow(str(path), place, str(error), _split(image, merge_restval), isinstance(error, NoText))
            continue
        unmatched += bool(
            exclude and exclude.flickr_ids and "cocoid" in image and as_id(image["cocoid"]) not in flickr_of
        )
        reason = exclude.reason(**_keys(image, flickr_of)) if exclude else ""
        guarded = canonical_split(image["split"]) in ("train", "restval") and reason != flickr_set(
            path
        )  # a set never excludes itself
        if reason and guarded:
            yield Excluded(reason, len(examples))
        else:
            yield from examples
    if number < 0:
        raise DataError(f"{path}: has no 'images' list; is it a Karpathy split file?")
    if unmatched and notes is not None:
        notes.append(f"{unmatched:,} photos of {path.name} could not be compared with Flickr30K: the file does not say"
                     " where on Flickr they come from, and captions_train2014.json, captions_val2014.json are not"
                     " beside it")  # fmt: skip


def _examples(image: Any, path: Path, place: str, merge_restval: bool) -> list[Example | BadRow]:
    if not isinstance(image, dict):
        raise RowError(f"an object was expected, found {type(image).__name__}")
    if "sentences" not in image and "file_name" in image:
        raise DataError(f"{path}: looks like an official COCO captions file; use the format 'coco'")
    filename, sentences = image.get("filename"), image.get("sentences")
    if not isinstance(filename, str) or not filename:
        raise RowError("has no 'filename'")
    if not isinstance(sentences, list):
        raise RowError(f"'{filename}' has no list of 'sentences'")
    if not sentences:
        raise NoText(f"'{filename}' has no sentence")
    canonical_split(image.get("split"))  # an unknown one is the row's fault
    split = _split(image, merge_restval)
    folder = image.get("filepath") or ""
    name = f"{folder}/{filename}" if folder else filename
    image_id = as_id(image.get("cocoid")) or filename
    dataset = "coco" if "cocoid" in image else _dataset_of(path)
    examples: list[Example | BadRow] = []
    for k, sentence in enumerate(sentences):
        where = f"{place}, sentence {k}"
        if not isinstance(sentence, dict):
            examples.append(BadRow(str(path), where, "the sentence is no object", split))
            continue
        text: Any = sentence.get("raw")
        if text is None and isinstance(sentence.get("tokens"), list):
            text = " ".join(map(str, sentence["tokens"]))
        identity = as_id(sentence.get("sentid")) or f"{filename}#{k}"
        examples.append(Example(identity, split, name, image_id, text, f"{path}: {where}", source=dataset))
    return examples


def _split(image: Any, merge_restval: bool) -> str:
    """The entry's split, "" when it names none that is known."""
    split = known_split(image.get("split")) if isinstance(image, dict) else ""
    return "train" if merge_restval and split == "restval" else split


def _dataset_of(path: Path) -> str:
    match = re.match(r"dataset_(\w+?)\.json", path.name)
    return match.group(1) if match else path.name.split(".")[0]


def _keys(image: Mapping[str, Any], flickr_of: Mapping[str, str]) -> dict[str, str]:
    """What an exclusion list may name this photo by."""
    coco = as_id(image.get("cocoid"))
    match = re.match(r"(\d+)(_|\.)", image["filename"])
    flickr = flickr_of.get(coco, "") if coco else (match.group(1) if match else "")
    return {"coco_id": coco, "flickr_id": flickr, "image_id": coco or image["filename"]}
