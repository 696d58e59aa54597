"""Runs of the three downstream tasks as training leaves them, made up in a moment (see made_up_run)."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from made_up_run import BATCH, STEPS
from PIL import Image

from pixelbert.bench.quickstart.drawing import draw
from pixelbert.bench.quickstart.world import make_scene
from pixelbert.recipes.schema import load_recipe

TASKS = ("question_answering", "image_pairs", "retrieval")
ANSWERS = ["yes", "no", "red", "blue", "green", "2", "3", "circle", "square"]
COLOURS, WORDS = ["red", "blue", "green", "mauve"], ["is there a", "what color is the", "how many"]
IMAGES, PER_IMAGE = 120, 5  # of the retrieval run
SCORED = {"question_answering": 600, "image_pairs": 320, "retrieval": IMAGES * PER_IMAGE}


def make_task_run(
    folder: Path, task: str, *, blind: bool = False, steps: int = STEPS, overrides: Sequence[str] = ()
) -> Path:
    """All small files of a task's run folder, no model. The figures are those of its per-record file."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True)
    changes = [f"task={task}", f"schedule.pairs={STEPS * BATCH}", "validation.shortlist=0", *overrides]
    recipe = load_recipe("pretrain-tiny", changes)
    recipe.blind = blind
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    weights = {"from": {"source": "runs/pretrained", "missing": ["head.0.weight"], "unused": ["mlm_head.bias"]}}
    run = {"format": 1, "task": task, "recipe": "pretrain-tiny", "from": "runs/pretrained", "weights": weights,
           "data": {"fingerprint": "ab" * 32, "folder": "scenes", "location": "data/scenes"},
           "versions": {"pixelbert": "0.1.0"}, "started": "2026-01-02T03:04:05+00:00"}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(ANSWERS))}))
    session = {"time": "2026-01-02T03:04:05+00:00", "step": 0, "steps": STEPS, "ranks": 1, "device": "cpu",
               "machine": "A processor", "cores": 2, "backbone": "float32", "encoder": "float32",
               "reason": "no bfloat16 in hardware"}  # fmt: skip
    (folder / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    rows = ROWS[task](rng, 0.12 if blind else 0.8)
    figures = FIGURES[task](rows)
    write_metrics(folder / "metrics.jsonl", rng, task, steps, figures)
    write_records(folder / "validation", task, rows, figures)
    return folder


def write_metrics(path: Path, rng: np.random.Generator, task: str, steps: int, figures: dict[str, float]) -> None:
    """Losses that fall; four validations that come to `figures`."""
    loss = {"question_answering": "vqa", "image_pairs": "statement", "retrieval": "retrieval"}[task]
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        value = 0.3 + 0.6 * np.exp(-5 * step / STEPS) + 0.03 * rng.normal()
        lines.append({"kind": "train", "step": step, "pairs": step * BATCH, "loss": value, loss: value,
                      "grad_norm": 1.0, "rate": 1 - step / STEPS, "pairs_per_s": 200.0, "data_wait": 0.02,
                      "seconds": step * 0.3})  # fmt: skip
        if step % (STEPS // 4) == 0:
            share = 0.55 + 0.45 * step / STEPS
            lines.append({"kind": "validation", "step": step, "pairs": step * BATCH, "seconds": step * 0.3,
                          "figures": {k: v * share if step < STEPS else v for k, v in figures.items()}})  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_records(folder: Path, task: str, rows: list[dict[str, Any]], figures: dict[str, float]) -> None:
    """The per-record file, figures.json, and a sheet with drawn pictures."""
    (folder / "examples").mkdir(parents=True)
    name = "ranks.jsonl" if task == "retrieval" else "records.jsonl"
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "figures.json").write_text(json.dumps(figures))
    wrong = [row for row in rows if (row["rank"] > 10 if task == "retrieval" else not row["right"])]
    chosen = [("lot", row) for row in rows[:12]] + [("failed", row) for row in wrong[:6]]
    examples = []
    for number, (group, row) in enumerate(chosen):
        count = {"question_answering": 1, "image_pairs": 2}.get(task) or 5 + (row["image"] not in row["best"])
        names = [f"examples/{number:02}-{place}.jpg" for place in range(count)]
        for place, picture in enumerate(names):
            (folder / picture).write_bytes(drawn((6 * number + place) % 9))
        examples.append({"group": group, **row, "pictures": names})
    (folder / "examples.json").write_text(json.dumps({"examples": examples}))


@functools.cache
def drawn(number: int) -> bytes:
    """A drawn scene, wide, high or square, as a JPEG."""
    stream = io.BytesIO()
    wide, high = ((200, 130), (130, 200), (180, 180))[number % 3]
    draw(make_scene("val", number, seed=0, backdrops=6)).resize((wide, high), Image.Resampling.LANCZOS).save(
        stream, "JPEG", quality=85
    )
    return stream.getvalue()


# -- rows as `evaluate` writes them ------------------------------------------------------------------------------------


def question_rows(rng: np.random.Generator, known: float) -> list[dict[str, Any]]:
    """Three kinds of questions, ten answers each; a model that knows so many of them. «mauve» is not in its list."""
    rows = []
    for number in range(SCORED["question_answering"]):
        kind = number % 3
        thing = ["circle", "square", "cross"][number % 7 % 3]
        question = [f"Is there a {thing}?", f"What color is the {thing}?", f"How many {thing}s are there?"][kind]
        answers = [["yes", "no"], COLOURS, ["2", "3"]][kind]
        true = answers[int(rng.integers(len(answers)))]
        given = {true: 10} if rng.random() < 0.7 else {true: 8, "crimson" if kind == 1 else "maybe": 2}
        listed = [a for a in answers if a in ANSWERS]
        said = true if rng.random() < known and true in ANSWERS else listed[int(rng.integers(len(listed)))]
        score = 100.0 if said == true else 0.0
        rows.append({"record": str(1000 + number), "question": question, "answer": said,
                     "probability": round(float(rng.uniform(0.3, 1)), 4), "score": score, "right": score > 0,
                     "given": given, "answer_type": ["yes/no", "other", "number"][kind],
                     "question_type": WORDS[kind]})  # fmt: skip
    return rows


def statement_rows(rng: np.random.Generator, known: float) -> list[dict[str, Any]]:
    """Sentences told of four pairs of pictures each."""
    rows = []
    for number in range(SCORED["image_pairs"]):
        label = bool(rng.random() < 0.5)
        judged = label if rng.random() < known else bool(rng.random() < 0.6)
        chance = float(rng.uniform(0.5, 1))
        rows.append({"record": f"dev-{number // 4}-{number % 4}-0", "judged": judged, "label": label,
                     "statement": f"Exactly one of the two pictures shows {number // 4} red circles.",
                     "probability": round(chance if judged else 1 - chance, 4), "right": judged == label})  # fmt: skip
    return rows


def rank_rows(rng: np.random.Generator, known: float) -> list[dict[str, Any]]:
    """Five sentences an image; the own picture somewhere in the order."""
    rows = []
    for number in range(SCORED["retrieval"]):
        own = number // PER_IMAGE
        rank = 1 + min(IMAGES - 1, int(rng.exponential(4 if rng.random() < known else 60)))
        others = [f"{i:04}.jpg" for i in rng.permutation(IMAGES).tolist() if i != own]
        order = [*others[: rank - 1], f"{own:04}.jpg", *others[rank - 1 :]]
        rows.append({"record": f"captions:{number}", "text": f"a red circle left of {number} blue squares",
                     "image": f"{own:04}.jpg", "rank": rank, "best": order[:5], "margin": 0.5})  # fmt: skip
    return rows


ROWS = {"question_answering": question_rows, "image_pairs": statement_rows, "retrieval": rank_rows}


def question_figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    figures = {"vqa_score": mean(rows, "score")}
    for kind in ("yes/no", "number", "other"):
        figures[f"vqa_score.{kind}"] = mean([r for r in rows if r["answer_type"] == kind], "score")
    for kind in WORDS:
        figures[f"vqa_score.question.{kind}"] = mean([r for r in rows if r["question_type"] == kind], "score")
    return figures


def statement_figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    groups: dict[str, list[bool]] = {}
    for row in rows:
        groups.setdefault(row["record"].split("-")[1], []).append(row["right"])
    return {"accuracy": 100 * mean(rows, "right"), "consistency": 100 * sum(map(all, groups.values())) / len(groups)}


def rank_figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    t2i = {f"t2i_r{k}": 100 * sum(r["rank"] <= k for r in rows) / len(rows) for k in (1, 5, 10)}
    i2t = {f"i2t_r{k}": min(100.0, 1.2 * t2i[f"t2i_r{k}"]) for k in (1, 5, 10)}
    pooled = {f"dual_{name}": 0.7 * value for name, value in (t2i | i2t).items()}
    return {"rsum": sum(t2i.values()) + sum(i2t.values()), **t2i, **i2t, **pooled}


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


FIGURES = {"question_answering": question_figures, "image_pairs": statement_figures, "retrieval": rank_figures}
