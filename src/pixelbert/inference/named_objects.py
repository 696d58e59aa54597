"""Words of captions that name an object whose place is known: from COCO's files, real or of the drawn scenes.

FOLDER/annotations/instances_PART.json      boxes; drawn scenes also tell each object's colour
FOLDER/annotations/captions_PART.json       captions of COCO photos, which lie in FOLDER/PART/
FOLDER/dataset_scenes.json                  captions of drawn scenes, which lie in FOLDER/images/PART/
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelbert.errors import DataError, nearest
from pixelbert.inference.sentence_words import split_words

Boxes = list[list[float]]

_SCENES = "dataset_scenes.json"
_LONGEST = 2  # words of a name ("fire hydrant")

#: COCO category -> what captions call it besides its own name and that name with an s. Words of several senses that
#: often mean something else ("orange", "plant", "bat") are left out. A word counts only where a photo has its object.
NOUNS: dict[str, str] = {
    "person": "people man men woman women boy boys girl girls child children kid kids lady ladies guy guys player "
    "players skier skiers surfer surfers skateboarder snowboarder batter rider riders",
    "bicycle": "bike bikes", "motorcycle": "motorbike motorbikes", "airplane": "plane planes jet jets aeroplane",
    "bus": "buses", "boat": "ship ships canoe", "traffic light": "stoplight", "bench": "benches",
    "cat": "kitten kittens", "dog": "puppy puppies dogs", "sheep": "lamb lambs", "cow": "cattle bull", "bear": "cub",
    "umbrella": "parasol", "handbag": "purse", "tie": "necktie", "suitcase": "luggage", "skis": "ski",
    "sports ball": "ball balls", "skateboard": "skate_board", "surfboard": "surf_board",
    "tennis racket": "racket rackets racquet", "wine glass": "wine_glasses", "knife": "knives",
    "sandwich": "sandwiches burger", "orange": "", "donut": "doughnut doughnuts", "couch": "sofa couches sofas",
    "potted plant": "houseplant", "dining table": "table tables", "tv": "television televisions tvs monitor monitors",
    "laptop": "computer", "mouse": "mice", "cell phone": "phone phones cellphone cellphones", "oven": "stove stoves",
    "refrigerator": "fridge", "teddy bear": "teddy", "hair drier": "hair_dryer", "toothbrush": "toothbrushes",
}  # fmt: skip


@dataclass(frozen=True)
class NamedObject:
    """A caption's word and where what it names lies.

    name: the word, or the words in a row, as written; the first such ones in the sentence are meant.
    boxes: every object of the category in the picture, each x, y, width, height in pixels.
    """

    image: Path
    sentence: str
    name: str
    category: str
    boxes: Boxes


def read_named_objects(folder: Path, part: str | None = None, photos: int = 0) -> list[NamedObject]:
    """The words that name an object, each category once a picture, in the order of the files.

    Args:
        folder: COCO's layout or drawn scenes, see the module's list.
        part: such as `val2014` or `val`; None: all that are there, of drawn scenes all but `train`.
        photos: so many pictures with such a word, of the first ones; 0 = all.

    Raises DataError when the folder holds no such files, or none of its captions names an object.
    """
    folder = Path(folder)
    drawn = (folder / _SCENES).is_file()
    files = sorted(folder.glob(f"annotations/instances_{part or '*'}.json"))
    if part is None and drawn:
        files = [file for file in files if file.stem != "instances_train"]
    if not files:
        there = [file.stem.removeprefix("instances_") for file in sorted(folder.glob("annotations/instances_*.json"))]
        hint = f"; {nearest(part, there)}" if part and there else ""
        raise DataError(f"{folder}: has no annotations/instances_{part or '*'}.json with the places of objects{hint}")
    found: list[NamedObject] = []
    for file in files:
        name = file.stem.removeprefix("instances_")
        captions = _scene_captions(folder, name) if drawn else _coco_captions(folder, name)
        pictures = folder / "images" / name if drawn else folder / name
        found += _named(_read(file), captions, pictures, file)
    if not found:
        raise DataError(f"{folder}: no caption names an object of its picture")
    images = list(dict.fromkeys(item.image for item in found))
    kept = set(images[:photos] if photos else images)
    return [item for item in found if item.image in kept]


def _named(instances: Any, captions: Mapping[str, list[str]], pictures: Path, file: Path) -> Iterator[NamedObject]:
    try:
        categories = {row["id"]: row["name"] for row in instances["categories"]}
        boxes: defaultdict[Any, defaultdict[str, Boxes]] = defaultdict(lambda: defaultdict(list))
        for row in instances["annotations"]:
            boxes[row["image_id"]][categories[row["category_id"]]].append(row["bbox"])
            if "color" in row:
                boxes[row["image_id"]][row["color"]].append(row["bbox"])
        nouns = nouns_of([*categories.values(), *{row["color"] for row in instances["annotations"] if "color" in row}])
        images = [(row["id"], row["file_name"]) for row in instances["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: not a file of COCO instances ({type(error).__name__}: {error})") from error
    for number, name in images:
        done: set[str] = set()
        for sentence in captions.get(name, []):
            for written, category in names_in(sentence, nouns):
                if category in boxes[number] and category not in done:
                    done.add(category)
                    yield NamedObject(pictures / name, sentence, written, category, boxes[number][category])


def nouns_of(categories: Iterable[str]) -> dict[str, str]:
    """What captions may call each category (casefolded, words of a name parted by one space) -> the category."""
    nouns: dict[str, str] = {}
    for category in categories:
        extra = [noun.replace("_", " ") for noun in NOUNS.get(category, "").split()]
        own = [f"{category}s"] if category == "orange" else [category, f"{category}s"]  # else mostly the colour
        nouns |= dict.fromkeys([*own, *extra], category)
    return nouns


def names_in(sentence: str, nouns: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The names in a sentence as written, with their category, from the left; "hot dog" is no dog."""
    words = split_words(sentence)
    place = 0
    while place < len(words):
        for count in range(min(_LONGEST, len(words) - place), 0, -1):
            written = " ".join(words[place : place + count])
            if written.casefold() in nouns:
                yield written, nouns[written.casefold()]
                break
        else:
            count = 1
        place += count


def _coco_captions(folder: Path, part: str) -> dict[str, list[str]]:
    """Captions by file name, from COCO's own file."""
    file = folder / "annotations" / f"captions_{part}.json"
    captions: defaultdict[str, list[str]] = defaultdict(list)
    content = _read(file)
    try:
        names = {row["id"]: row["file_name"] for row in content["images"]}
        for row in content["annotations"]:
            captions[names[row["image_id"]]].append(row["caption"].strip())
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: not a file of COCO captions ({type(error).__name__}: {error})") from error
    return captions


def _scene_captions(folder: Path, part: str) -> dict[str, list[str]]:
    """Captions by file name, from Karpathy's format."""
    file = folder / _SCENES
    content = _read(file)
    try:
        return {
            row["filename"]: [sentence["raw"] for sentence in row["sentences"]]
            for row in content["images"]
            if row["split"] == part
        }
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{file}: not a file of captions in Karpathy's format ({type(error).__name__}: {error})"
        ) from error


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error})") from error
