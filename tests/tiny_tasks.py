"""Tiny data of the downstream tasks in the official formats, and recipes of a few steps for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixelbert.data.prepare import prepare
from pixelbert.recipes.schema import Recipe, load_recipe
from tiny_runs import BASE, tiny_data

TASKS = ("question_answering", "image_pairs", "retrieval")
CHANGES = {"retrieval": ("loss.contrastive=1", "ranking.negatives=5")}


def task_recipe(task: str, *changes: str) -> Recipe:
    """As `tiny_recipe`: six steps of eight records, one validation at the end."""
    return load_recipe("pretrain-tiny", [*BASE.split(" "), f"task={task}", *CHANGES.get(task, ()), *changes])


def task_data(folder: Path, task: str) -> Path:
    """Prepared data at FOLDER/data: train, val, and a split without answers or labels (test-dev, test-std, test)."""
    if task == "retrieval":
        return tiny_data(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if task == "question_answering":
        return prepare("vqa", [write_vqa(folder)], folder / "data").folder
    return prepare("nlvr2", [write_nlvr2(folder)], folder / "data").folder


def write_vqa(folder: Path) -> Path:
    """Official files: photos 1-9 train, 10-13 val, 14-16 test-dev, three questions each, ten answers.

    Of every nine questions one is answered by words that no other has.
    """
    for subtype, photos in (("train", range(1, 10)), ("val", range(10, 14)), ("test-dev", range(14, 17))):
        head = {"info": {}, "data_type": "tiny", "data_subtype": subtype, "license": {}}
        pairs = [(photo, 10 * photo + n) for n in range(3) for photo in photos]
        asked = [{"image_id": p, "question": f"what is the {['man', 'dog', 'cat'][q % 10]}", "question_id": q}
                 for p, q in pairs]  # fmt: skip
        _write(folder / f"v2_OpenEnded_tiny_{subtype}_questions.json", {**head, "questions": asked})
        for photo in photos:
            picture(folder / "images" / f"{photo:012}.png", photo)
        if subtype != "test-dev":
            answered = [_annotation(p, q, number) for number, (p, q) in enumerate(pairs)]
            _write(folder / f"v2_tiny_{subtype}_annotations.json", {**head, "annotations": answered})
    return folder


def _annotation(photo: int, question: int, number: int) -> dict[str, Any]:
    own = f"thing {question}" if number % 9 == 8 else ("yes", "2", "red")[number % 3]
    given = [own] * 7 + ["no"] * 3
    return {
        "question_id": question, "image_id": photo, "question_type": "what is", "multiple_choice_answer": own,
        "answer_type": "number" if own == "2" else "other",
        "answers": [{"answer": a, "answer_id": i, "answer_confidence": "yes"} for i, a in enumerate(given, 1)],
    }  # fmt: skip


def write_nlvr2(folder: Path) -> Path:
    """Official files: train of eight pairs, dev of four, test2 of three (without labels), two sentences a pair."""
    for part, pairs in (("train", 8), ("dev", 4), ("test2", 3)):
        lines = []
        for pair in range(pairs):
            for side in range(2):
                picture(folder / "images" / f"{part}-1-{pair}-img{side}.png", 100 + 10 * pair + side + len(part))
            for sentence in range(2):
                row = {"sentence": f"the dog is {['red', 'blue'][sentence]}",
                       "identifier": f"{part}-1-{pair}-{sentence}"}  # fmt: skip
                lines.append(json.dumps(row | ({} if part == "test2" else {"label": str((pair + sentence) % 2 == 0)})))
        (folder / f"{part}.json").write_text("\n".join(lines) + "\n")
    return folder


def picture(path: Path, seed: int) -> Path:
    """A picture of 64 x 64; every seed gives another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64)).save(path)
    return path


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
