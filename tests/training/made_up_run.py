"""A run folder as training leaves it, made up in a moment: the tests of the report start from it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pixelbert.bench.quickstart.captions import captions
from pixelbert.bench.quickstart.drawing import draw
from pixelbert.bench.quickstart.world import COLORS, SHAPES, make_scene
from pixelbert.recipes.schema import load_recipe

STEPS, BATCH = 400, 64


def make_run(
    folder: Path, *, steps: int = STEPS, validations: int = 4, blind: bool = False, overrides: Sequence[str] = ()
) -> Path:
    """All small files of a run folder, no model."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    changes = [f"schedule.pairs={STEPS * BATCH}", "optim.text.new_lr=0.002", *overrides]
    recipe = load_recipe("pretrain-tiny", changes)
    recipe.blind = blind
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    report = {"source": "package:minilm-l6", "loaded": [f"layer.{i}" for i in range(101)], "missing": ["mlm_head.bias"],
              "unused": [f"_fc.{i}" for i in range(90)], "misshaped": [], "notes": ["a note"]}  # fmt: skip
    run = {"format": 1, "task": "pretraining", "recipe": "pretrain-tiny",
           "data": {"fingerprint": "9360ee82800ca4d7" * 4, "folder": "scenes", "location": "data/scenes"},
           "weights": {"text": report}, "versions": {"pixelbert": "0.1.0", "torch": "2.14.1"},
           "started": "2026-01-02T03:04:05+00:00"}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    session = {"time": "2026-01-02T03:04:05+00:00", "step": 0, "steps": STEPS, "ranks": 1, "device": "cpu",
               "machine": "A processor", "vectors": "AVX2", "cores": 2, "backbone": "float32", "encoder": "float32",
               "reason": "no bfloat16 in hardware"}  # fmt: skip
    (folder / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in metrics(rng, steps, validations, blind))
    )
    if validations:
        write_validation(folder / "validation", rng, blind)
    return folder


def metrics(rng: np.random.Generator, steps: int, validations: int, blind: bool) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl: losses that fall, one validation after each equal part."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        share, noise = step / STEPS, rng.normal(0, 1, 3)
        mlm = 1.1 + 4 * math.exp(-6 * share) + 0.12 * noise[0]
        itm = 0.25 + 0.45 / (1 + math.exp(14 * (share - 0.45))) + 0.04 * noise[1]
        rows.append({"kind": "train", "step": step, "pairs": step * BATCH, "loss": mlm + itm, "mlm": mlm, "itm": itm,
                     "grad_norm": float(np.exp(0.4 * noise[2])) * (1 + 3 * math.exp(-9 * share)),
                     "rate": min(1.0, 1 / 3 + step / 75) * min(1.0, 1.43 * (1.0001 - share)),
                     "pairs_per_s": 210 + 20 * math.tanh(step / 30), "data_wait": 0.02 + 0.1 / step,
                     "seconds": step * 0.3})  # fmt: skip
        if validations and step % (STEPS // validations) == 0:
            rows.append({"kind": "validation", "step": step, "pairs": step * BATCH, "seconds": step * 0.3 + 1,
                         "figures": figures(share, blind)})  # fmt: skip
    return rows


def figures(share: float, blind: bool) -> dict[str, float]:
    own = 44.0 + (2 if blind else 36) * share
    shuffled = own if blind else 45.0 - share
    found = {"mlm_accuracy": own, "mlm_accuracy_shuffled": shuffled, "itm_accuracy": 50 + (0 if blind else 43) * share}
    found["mlm_gain_shuffled"] = own - shuffled
    return found | {f"itm_{d}_r{k}": min(100.0, 8.0 * k * share + 5 * k) for d in ("t2i", "i2t") for k in (1, 5, 10)}


def write_validation(folder: Path, rng: np.random.Generator, blind: bool) -> None:
    """masked_words.jsonl, and the sheet with drawn pictures and made-up guesses."""
    (folder / "examples").mkdir(parents=True)
    words = []
    for i in range(300):
        known, helped = rng.random() < 0.4, rng.random() < 0.6
        words.append({"record": f"r{i // 2}", "place": i % 2, "word": "a" if known else "red",
                      "predicted": "a" if known else "red" if helped else "blue",
                      "predicted_shuffled": "a" if known else "red" if rng.random() < 0.2 else "blue"})  # fmt: skip
    (folder / "masked_words.jsonl").write_text("".join(json.dumps(w) + "\n" for w in words))
    groups = ["lot"] * 12 + ([] if blind else ["helped"] * 6) + ["failed"] * 6
    examples = [example(folder, i, group, rng) for i, group in enumerate(groups)]
    sheet = {"images": 40, "captions": 200, "examples": examples}
    (folder / "examples.json").write_text(json.dumps(sheet))


def example(folder: Path, number: int, group: str, rng: np.random.Generator) -> dict[str, Any]:
    scenes = [make_scene("val", n, seed=0, backdrops=6) for n in (number, number + 100)]
    names = [f"examples/{number:02}.jpg", f"examples/{number:02}-other.jpg"]
    for scene, name in zip(scenes, names, strict=True):
        stream = io.BytesIO()
        draw(scene).save(stream, "JPEG", quality=90)
        (folder / name).write_bytes(stream.getvalue())
    text = captions(scenes[0], rng)[0]
    pieces = [*text.split(), "."]
    places = [i for i, piece in enumerate(pieces) if piece in COLORS or piece in SHAPES][:2]
    masked = [guess(pieces[place], place, group, rng) for place in places]
    return {"group": group, "image": names[0], "record": f"r{number}", "pieces": pieces, "masked": masked,
            "match": {"own": 0.97 if group != "failed" else 0.31, "false": 0.04,
                      "false_caption": captions(scenes[1], rng)[1]},
            "picture": names[0], "other_picture": names[1]}  # fmt: skip


def guess(true: str, place: int, group: str, rng: np.random.Generator) -> dict[str, Any]:
    """Three made-up guesses with each picture; the first is wrong with the own picture in the group of failures."""
    words = list(COLORS if true in COLORS else SHAPES)
    others = [words[i] for i in rng.permutation(len(words)) if words[i] != true]
    shares = sorted(rng.dirichlet((8, 2, 1, 1)).tolist(), reverse=True)
    own = [others[0], others[1], others[2]] if group == "failed" else [true, others[0], others[1]]
    return {"place": place, "true": true, "shown": [None, None, None, "row", true][int(rng.integers(5))],
            "own": [[w, s] for w, s in zip(own, shares, strict=False)], "own_true": shares[3 * (group == "failed")],
            "other": [[w, s] for w, s in zip(others[:3], shares, strict=False)], "other_true": shares[3]}  # fmt: skip
