"""Photos that must stay out of training: COCO val and test, Flickr30K, and lists of the user's own.

The paper trains on Visual Genome, whose photos come from COCO's source too, and scores on COCO and Flickr30K:
a photo of those sets in the training data would be a leak. Visual Genome names the COCO id and the Flickr photo id
of each photo; COCO names a photo's Flickr address; a Flickr30K file name begins with the Flickr photo id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixelbert.data.files import open_bytes
from pixelbert.data.formats.common import as_id, json_items, known_split, parse_json, split_of_name
from pixelbert.errors import DataError

HELD_OUT_SPLITS = ("val", "test")
_COCO_NAME = re.compile(r"COCO_(?:train|val|test)\d{4}_0*(\d+)")
_COCO_2017_NAME = re.compile(r"(?:.*/)?(?=0\d{11}(?:\.|$))0+(\d+)(?:\.\w+)?$")  # no Flickr id begins with 0
_NUMBERED = re.compile(r"(?:.*/)?0*(\d+)(?:\.\w+)?$")
_FLICKR_NAME = re.compile(r"(?:.*/)?(\d+)(?:_[0-9a-z]+)*\.jpe?g$", re.IGNORECASE)


@dataclass
class Exclusions:
    """Photo ids to leave out, each with the reason that is told: {id: "COCO val"}.

    ids_of: for each list what it names, as (kind of id, id). met: all that photos were found by.
    """

    coco_ids: dict[str, str] = field(default_factory=dict)
    flickr_ids: dict[str, str] = field(default_factory=dict)
    image_ids: dict[str, str] = field(default_factory=dict)
    ids_of: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    met: set[tuple[str, str]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.coco_ids or self.flickr_ids or self.image_ids)

    def reason(self, *, coco_id: str = "", flickr_id: str = "", image_id: str = "") -> str:
        """Why the photo with these ids is left out, "" when it may stay."""
        named, of_kind = {"coco": coco_id, "flickr": flickr_id, "image": image_id}, self.of_kind()
        found = [(kind, identity) for kind, identity in named.items() if identity in of_kind[kind]]
        self.met.update(found)
        return next((of_kind[kind][identity] for kind, identity in found), "")

    def of_kind(self) -> dict[str, dict[str, str]]:
        """The three tables of ids, by what a prefix calls them."""
        return {"coco": self.coco_ids, "flickr": self.flickr_ids, "image": self.image_ids}

    def add(self, name: str, other: Exclusions) -> None:
        """Take over what the list of this name gives; reasons that were there stay."""
        self.coco_ids = other.coco_ids | self.coco_ids
        self.flickr_ids = other.flickr_ids | self.flickr_ids
        self.image_ids = other.image_ids | self.image_ids
        named = {(kind, identity) for kind, ids in other.of_kind().items() for identity in ids}
        self.ids_of.setdefault(name, set()).update(named)


def load_exclusions(lists: Iterable[Path | str]) -> Exclusions:
    """Read exclusion lists: Karpathy JSON files, official COCO captions files, or plain lists, one id or file name a
    line (or a JSON list).

    Of a Karpathy file of COCO the photos of val and test are taken (restval is trained on), of an official COCO file
    all photos; of any other Karpathy file, whose names are Flickr photo ids, all photos. In a plain list
    `COCO_val2014_000000000042.jpg` and `000000000042.jpg` are COCO photo 42, `36979.jpg` is Flickr photo 36979; a bare
    number is matched with both. A prefix says it outright: `coco:FILE`, `flickr:FILE`, or `image:FILE` for the data
    set's own image ids.

    Raises DataError when a file is missing, damaged, names nothing, or has a line that is not what its prefix says.
    """
    out = Exclusions()
    for item in lists:
        kind, _, path = str(item).partition(":")
        if kind not in ("coco", "flickr", "image") or not path:
            kind, path = "", str(item)
        found = Exclusions()
        if _is_karpathy(path):
            _add_karpathy(found, path)
            if kind and not found.of_kind()[kind]:
                raise DataError(f"{path}: a split file that names no photo by the ids that '{kind}:' says")
        else:
            _add_plain(found, path, kind)
        out.add(str(item), found)
    return out


def _is_karpathy(path: str) -> bool:
    with open_bytes(path) as stream:
        start = stream.peek(64)[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith(b"{")


def _add_karpathy(out: Exclusions, path: str) -> None:
    found = False
    for number, image in enumerate(json_items(path, "images.item")):
        found = True
        if isinstance(image, dict) and isinstance(image.get("file_name"), str) and as_id(image.get("id")):
            _add_coco(out, image, f"COCO {split_of_name(path)}".strip())  # an official file: one split, all photos
            continue
        if not isinstance(image, dict) or not isinstance(image.get("filename"), str):
            raise DataError(f"{path}: image {number} has no 'filename'; a Karpathy split file was expected")
        split, coco = image.get("split"), as_id(image.get("cocoid"))
        if coco:
            if split in HELD_OUT_SPLITS:
                out.coco_ids.setdefault(coco, f"COCO {split}")
        elif match := _FLICKR_NAME.match(image["filename"]):
            out.flickr_ids.setdefault(match.group(1), flickr_set(path))
    if not found:
        raise DataError(f"{path}: has no 'images' list; a Karpathy split file was expected")


def _add_coco(out: Exclusions, image: dict[str, Any], reason: str) -> None:
    out.coco_ids.setdefault(as_id(image["id"]), reason)
    if flickr := flickr_id_of_url(image.get("flickr_url")):
        out.flickr_ids.setdefault(flickr, reason)


def flickr_set(path: Path | str) -> str:
    """The set that a Karpathy file of Flickr photos is of, by its name; the reason told for leaving one out."""
    name = Path(path).name.lower()
    return "Flickr30K" if "flickr30k" in name else "Flickr8k" if "flickr8k" in name else Path(path).name


def _add_plain(out: Exclusions, path: str, kind: str) -> None:
    name, lines = Path(path).name, _lines(path)
    if not lines:
        raise DataError(f"{path}: the exclusion list is empty")
    for place, line in lines:
        coco, flickr = ("", "") if kind == "image" else _ids_of(_first_word(line, kind), kind)
        if kind in ("coco", "flickr") and not (coco or flickr):
            what = {"coco": "COCO", "flickr": "Flickr"}[kind]
            raise DataError(f"{path}: {place}: '{line}' names no {what} photo, by number or file name")
        if coco:
            out.coco_ids.setdefault(coco, name)
        if flickr:
            out.flickr_ids.setdefault(flickr, name)
        if not coco and not flickr:
            out.image_ids.setdefault(line, name)


def _ids_of(word: str, kind: str) -> tuple[str, str]:
    """(COCO photo, Flickr photo) that a word of a plain list names, "" for neither; a bare number may be of both."""
    coco = _COCO_NAME.search(word) or (_COCO_2017_NAME if kind != "coco" else _NUMBERED).match(word)
    flickr = _FLICKR_NAME.match(word)
    if kind == "coco" or (coco and kind != "flickr"):
        return (coco.group(1) if coco else ""), ""
    if flickr:
        return "", flickr.group(1)
    return (word.lstrip("0") or "0" if word.isdecimal() and not kind else ""), (word if word.isdecimal() else "")


def _first_word(line: str, kind: str) -> str:
    """What names the photo: the first field of a line. Without a prefix a comma may be part of a file's own name, but
    not where a split stands behind it.
    """
    first, _, rest = re.sub(r"[\s,;]+", " ", line).partition(" ")
    return first if kind or not rest or known_split(rest.split()[0]) else line.split()[0]


def _lines(path: str) -> list[tuple[str, str]]:
    """(place, content) of every line, or of every entry of a JSON list."""
    with open_bytes(path) as stream:
        data = stream.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8") from error
    if text.lstrip().startswith("["):
        try:
            values: list[Any] = parse_json(text)
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error})") from error
        ids = [as_id(value) for value in values]
        if "" in ids:
            raise DataError(f"{path}: entry {ids.index('')} is no id or file name")
        return [(f"entry {place}", word) for place, word in enumerate(ids)]
    lines = [(f"line {place}", line.strip()) for place, line in enumerate(text.splitlines(), 1)]
    return [(place, line) for place, line in lines if line and not line.startswith("#")]


def coco_flickr_ids(split_file: Path | str) -> dict[str, str]:
    """{COCO photo id: Flickr photo id}, from the official captions files beside a Karpathy COCO file, if there.

    The Karpathy file does not say where on Flickr a photo was found; captions_{train,val}2014.json do.
    """
    folder = Path(split_file).parent
    out: dict[str, str] = {}
    for place in (folder, folder / "annotations", folder.parent / "annotations"):
        for path in sorted(place.glob("captions_*2014.json*")):
            for image in json_items(path, "images.item"):
                flickr = flickr_id_of_url(image.get("flickr_url")) if isinstance(image, dict) else ""
                if flickr:
                    out[as_id(image.get("id"))] = flickr
        if out:
            break
    return out


def flickr_id_of_url(url: object) -> str:
    """http://farm9.staticflickr.com/8292/7866247804_e0486b75b8_z.jpg -> 7866247804; "" when it is none."""
    match = _FLICKR_NAME.match(str(url)) if isinstance(url, str) else None
    return match.group(1) if match else ""
