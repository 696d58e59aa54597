"""Draws the quickstart's own world and writes it in the files of the official data sets, so the real readers read it.

    OUT/scenes.json                                     what was asked for: seed and counts
    OUT/images/SPLIT/scenes_SPLIT_000000000001.png      96 x 96 pictures
    OUT/dataset_scenes.json                             captions, as Karpathy's split files
    OUT/annotations/instances_SPLIT.json                boxes and outlines, as COCO instances; category = shape
    OUT/vqa/v2_OpenEnded_scenes_SPLIT_questions.json    questions, as VQA 2.0
    OUT/vqa/v2_scenes_SPLIT_annotations.json            ten answers each, as VQA 2.0
    OUT/nlvr2/{train,dev,test1}.json                    statements about two pictures, as NLVR2 (JSON lines)
    OUT/nlvr2/images/SPLIT/SPLIT-SET-PAIR-img0.png      their pictures under NLVR2's names (hard links where possible)

What a model can get without looking is set by construction and told beside each kind of text: `captions`, `questions`,
`statements`. No scene is in two splits (`world`). No photo is used, nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelbert.bench.quickstart.captions import captions
from pixelbert.bench.quickstart.drawing import BACKDROPS, draw, polygon
from pixelbert.bench.quickstart.questions import questions
from pixelbert.bench.quickstart.statements import PairSet, pair_sets
from pixelbert.bench.quickstart.world import IMAGE_SIZE, SHAPES, SPLITS, Scene, make_scene, random_of
from pixelbert.data.output import new_folder
from pixelbert.errors import UsageError

MARKER = "scenes.json"  # tells a folder of drawn scenes from any other
VERSION = 2  # of the drawing and the texts: a folder of another version is drawn again
NLVR2_SPLITS = {"train": "train", "val": "dev", "test": "test1"}
MAX_SCENES = 100_000  # a split; image ids of the splits lie this far apart

_CAPTIONS, _QUESTIONS, _STATEMENTS = 2, 3, 4  # streams of random numbers, after world's two
_INFO = {"description": "Drawn scenes of the pixelbert quickstart", "version": str(VERSION), "year": 2020}
_LICENSE = {"url": "https://www.apache.org/licenses/LICENSE-2.0", "name": "Apache License 2.0"}


def image_id(scene: Scene) -> int:
    """The id of the scene's picture in all files; ids are unique over the splits."""
    return SPLITS.index(scene.split) * MAX_SCENES + scene.number + 1


def image_name(scene: Scene) -> str:
    """The file name of the scene's picture, in the manner of COCO."""
    return f"scenes_{scene.split}_{image_id(scene):012d}.png"


def draw_scenes(out: Path, *, train: int, val: int, test: int, seed: int = 0, overwrite: bool = False) -> None:
    """Draws the scenes and writes all files of the module's list into the new folder `out`.

    The same seed and counts give the same files, byte for byte; more scenes leave the pictures and captions of the
    first ones as they are. The folder appears whole or not at all. `overwrite` replaces a folder that this function
    wrote before, and no other.

    Raises UsageError for impossible counts and for an `out` that exists, MachineError when the disk refuses.
    """
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    for split, count in counts.items():
        if not 0 <= count <= MAX_SCENES:
            raise UsageError(f"{split}={count}: the number of scenes must lie between 0 and {MAX_SCENES}")
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed={seed}: the seed must be a whole number from 0 to 2^63 - 1")
    with new_folder(Path(out), overwrite=overwrite, marker=MARKER) as folder:
        _write_all(folder, counts, seed)


def described(folder: Path) -> dict[str, Any] | None:
    """What a folder of drawn scenes says about itself (version, seed, train, val, test); None for any other folder."""
    try:
        about = json.loads((Path(folder) / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def _write_all(folder: Path, counts: Mapping[str, int], seed: int) -> None:
    scenes = {
        split: [make_scene(split, number, seed=seed, backdrops=len(BACKDROPS)) for number in range(count)]
        for split, count in counts.items()
    }
    _write_json(folder / "dataset_scenes.json", _karpathy(scenes, seed))
    for split, members in scenes.items():
        _write_pictures(folder / "images" / split, members)
        _write_json(folder / "annotations" / f"instances_{split}.json", _instances(members))
        _write_vqa(folder / "vqa", split, members, seed)
        _write_nlvr2(folder, split, members, seed)
    _write_json(folder / MARKER, {"version": VERSION, "seed": seed, **counts})


def _write_pictures(folder: Path, scenes: Sequence[Scene]) -> None:
    folder.mkdir(parents=True)
    for scene in scenes:
        draw(scene).save(folder / image_name(scene), compress_level=6)


def _karpathy(scenes: Mapping[str, Sequence[Scene]], seed: int) -> dict[str, Any]:
    """The content of Karpathy's `dataset_*.json`; `imgid` counts through all splits, `sentid` through all captions."""
    images: list[dict[str, Any]] = []
    sentid = 0
    for split, members in scenes.items():
        for scene in members:
            texts = captions(scene, random_of(seed, split, scene.number, _CAPTIONS))
            imgid = len(images)
            sentences = [
                {"tokens": text.split(), "raw": text, "imgid": imgid, "sentid": sentid + place}
                for place, text in enumerate(texts)
            ]
            images.append(
                {
                    "filepath": split,
                    "sentids": [sentence["sentid"] for sentence in sentences],
                    "filename": image_name(scene),
                    "imgid": imgid,
                    "split": split,
                    "sentences": sentences,
                }
            )
            sentid += len(texts)
    return {"images": images, "dataset": "scenes"}


def _instances(scenes: Sequence[Scene]) -> dict[str, Any]:
    """COCO instances: one annotation a thing, with its outline. Colour, size and place are extra fields."""
    images = [
        {"id": image_id(scene), "file_name": image_name(scene), "width": IMAGE_SIZE, "height": IMAGE_SIZE, "license": 1}
        for scene in scenes
    ]
    annotations = [
        {"id": 10 * image_id(scene) + place, "image_id": image_id(scene), "iscrowd": 0}
        | {"category_id": SHAPES.index(thing.shape) + 1, **_geometry(polygon(thing))}
        | {"color": thing.color, "size": thing.size, "place": thing.place}
        for scene in scenes
        for place, thing in enumerate(scene.things)
    ]
    categories = [{"id": place + 1, "name": shape, "supercategory": "shape"} for place, shape in enumerate(SHAPES)]
    licenses = [{"id": 1, **_LICENSE}]
    parts = {"images": images, "annotations": annotations, "categories": categories}
    return {"info": _INFO, "licenses": licenses, **parts}


def _geometry(points: np.ndarray) -> dict[str, Any]:
    """`segmentation`, `bbox` (x, y, width, height) and `area` of an outline, in pixels to two decimals."""
    x, y = points.T
    area = abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    low, extent = points.min(0), np.ptp(points, axis=0)
    return {
        "segmentation": [np.round(points, 2).ravel().tolist()],
        "bbox": np.round([*low, *extent], 2).tolist(),
        "area": round(area, 2),
    }


def _write_vqa(folder: Path, split: str, scenes: Sequence[Scene], seed: int) -> None:
    """The question file and the annotation file of one split, in the same order."""
    asked: list[dict[str, Any]] = []
    annotated: list[dict[str, Any]] = []
    places: dict[int, int] = {}
    for question in questions(scenes, random_of(seed, split, 0, _QUESTIONS)):
        picture = image_id(scenes[question.scene])
        place = places[picture] = places.get(picture, -1) + 1
        ids = {"image_id": picture, "question_id": 1000 * picture + place}
        asked.append({**ids, "question": question.text})
        answers = [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(question.answers, 1)
        ]
        labels = {"question_type": question.kind, "answer_type": question.answer_type}
        annotated.append({**labels, "multiple_choice_answer": question.majority, "answers": answers, **ids})
    head = {"info": _INFO, "license": _LICENSE, "data_type": "scenes", "data_subtype": split}
    _write_json(
        folder / f"v2_OpenEnded_scenes_{split}_questions.json", {**head, "task_type": "Open-Ended", "questions": asked}
    )
    _write_json(folder / f"v2_scenes_{split}_annotations.json", {**head, "annotations": annotated})


def _write_nlvr2(folder: Path, split: str, scenes: Sequence[Scene], seed: int) -> None:
    """The JSON lines of one split, and its pictures under NLVR2's names."""
    name = NLVR2_SPLITS[split]
    sets = pair_sets(scenes, random_of(seed, split, 0, _STATEMENTS))
    (folder / "nlvr2" / "images" / name).mkdir(parents=True)
    _write_lines(folder / "nlvr2" / f"{name}.json", (json.dumps(row) for row in _statements(name, sets, scenes)))
    for number, pair_set in enumerate(sets):
        for pair, sides in enumerate(pair_set.pairs):
            for side, index in enumerate(sides):
                source = folder / "images" / split / image_name(scenes[index])
                _link(source, folder / "nlvr2" / "images" / name / f"{name}-{number}-{pair}-img{side}.png")


def _statements(name: str, sets: Sequence[PairSet], scenes: Sequence[Scene]) -> Iterator[dict[str, Any]]:
    """The rows with NLVR2's field names; train rows have `directory`, the others `extra_validations`."""
    for number, pair_set in enumerate(sets):
        for place, sentence in enumerate(pair_set.sentences):
            for pair, (left, right) in enumerate(pair_set.pairs):
                yield {
                    "validation": {},
                    "sentence": sentence.text,
                    "left_url": image_name(scenes[left]),
                    "right_url": image_name(scenes[right]),
                    "writer": "0",
                    "label": str(sentence.truths[pair]),
                    "synset": "shape",
                    "query": sentence.kind,
                    "identifier": f"{name}-{number}-{pair}-{place}",
                    **({"directory": number % 100} if name == "train" else {"extra_validations": {}}),
                }


def _link(source: Path, target: Path) -> None:
    """A second name for the file, or a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write_lines(path, [json.dumps(content)])


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as handle:
        handle.writelines(line + "\n" for line in lines)
        handle.flush()
        os.fsync(handle.fileno())
