"""Visual question answering (Section 4.2): a question about a picture -> an answer from a list.

Data sets differ in how many people answered a question. Ten is VQA 2.0, scored by its official script. Any other number
follows the same idea: an answer's worth is min(1, 3 x the share of people who gave it), which for ten people is the
official 0.3 / 0.6 / 0.9 / 1.0 of the training targets, and for one person is exact match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelbert.data.batches import Batch, Plan, Records
from pixelbert.errors import DataError
from pixelbert.metrics import normalize_answer, vqa_accuracy, vqa_answer_vocabulary
from pixelbert.model.heads import PixelBertForQuestionAnswering
from pixelbert.model.pixels import Grid
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.objective import Objective, length_chunks

OFFICIAL_ANSWERS = 10  # people who answered each question of VQA 2.0


def vqa_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy summed over answers and questions: [T, answers] each, targets in 0..1."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")


def given_answers(target: Mapping[str, Any]) -> list[str]:
    """The answers people gave to a record's question, as they are; empty where there are none (a test split)."""
    return [entry["answer"] if isinstance(entry, Mapping) else str(entry) for entry in target.get("answers", ())]


def answer_list(targets: Iterable[Mapping[str, Any]], min_count: int = 9) -> list[str]:
    """The answers a model chooses from: those given to at least `min_count` questions, most frequent first.

    Official annotations count their `multiple_choice_answer`, by the official rule; other data the commonest answer of
    each question. Raises DataError when none is left.
    """
    annotations = [
        {"question_id": number, "multiple_choice_answer": _commonest(target)}
        for number, target in enumerate(targets)
        if given_answers(target)
    ]
    answers = vqa_answer_vocabulary(annotations, min_count)
    if not answers:
        raise DataError(f"no answer is given to at least {min_count} of the {len(annotations)} questions")
    return answers


def _commonest(target: Mapping[str, Any]) -> str:
    if "multiple_choice_answer" in target:
        return str(target["multiple_choice_answer"])
    counts = Counter(given_answers(target))  # keeps the order of first mention among equals
    return counts.most_common(1)[0][0]


def soft_targets(target: Mapping[str, Any], place: Mapping[str, int], normalize: bool = True) -> np.ndarray:
    """Each answer's worth as a training target, float32 [answers]; `place` is an answer's place in the list."""
    given = given_answers(target)
    counts = Counter(normalize_answer(answer) if normalize else answer for answer in given)
    worth = np.zeros(len(place), dtype=np.float32)
    for answer, count in counts.items():
        if answer in place:
            worth[place[answer]] = min(1.0, round(3 * count / len(given), 6))
    return worth


@dataclass
class QuestionBatches(Inputs):
    """Builds the batch of a plan: pictures once each, questions, soft targets over the answer list."""

    answers: Sequence[str] = ()
    normalize: bool = True
    place: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.place = {answer: i for i, answer in enumerate(self.answers)}

    def __call__(self, plan: Plan) -> Batch:
        """As `PretrainingBatches`, with `targets` float32 [T, answers] instead of labels and matches."""
        batch = self.images_of(self.records.image_of[plan.records], plan.epochs)
        records = plan.records.tolist()
        batch |= self.text_batch([self.records.text(record) for record in records])
        targets = [soft_targets(self.records.target(record), self.place, self.normalize) for record in records]
        batch["targets"] = torch.from_numpy(np.stack(targets))
        batch["records"], batch["step"] = records, plan.step
        return batch


@dataclass(frozen=True)
class QuestionLosses:
    """The weight of the one loss."""

    vqa: float = 1.0


class QuestionObjective(Objective):
    """Binary cross-entropy over the answer list, all pixels (sampling is for pretraining alone)."""

    model: PixelBertForQuestionAnswering

    def losses(self, batch: Batch, grid: Grid, settings: QuestionLosses) -> dict[str, Tensor]:
        """vqa: summed over the questions."""
        total: Any = 0.0
        for rows, length in length_chunks(batch["attention_mask"], self.chunks):
            logits = self.model(
                batch["input_ids"][rows, :length],
                attention_mask=batch["attention_mask"][rows, :length],
                grid=grid.select(batch["image_of_text"][rows]),
            ).logits
            total = total + vqa_loss(logits, batch["targets"][rows])
        return {"vqa": total}


def score_answers(records: Records, answers: Mapping[int, str]) -> tuple[dict[str, float], list[float]]:
    """Figures in percent (overall, per answer type, per question type) and each record's own, for predicted answers.

    Args:
        answers: record -> answer, for every record.

    Official data (ten answers a question) goes through the official script's rules; other data by the worth of an
    answer (see above) on normalised strings. Questions whose answers are not in the model's list count like all others.
    """
    targets = [records.target(record) for record in range(records.num_records)]
    if all(len(given_answers(target)) == OFFICIAL_ANSWERS for target in targets):
        annotations = [{"answer_type": "", "question_type": "", **t, "question_id": i} for i, t in enumerate(targets)]
        scores = vqa_accuracy(dict(answers), annotations)
        figures = {"vqa_score": scores.overall}
        figures |= {f"vqa_score.{name}": value for name, value in scores.per_answer_type.items() if name}
        figures |= {f"vqa_score.question.{name}": value for name, value in scores.per_question_type.items() if name}
        return figures, [scores.per_question[i] for i in range(len(targets))]
    worth = [_worth(answers[i], target) for i, target in enumerate(targets)]
    figures = {"vqa_score": float(np.mean(worth))}
    kinds = Counter(str(target["answer_type"]) for target in targets if target.get("answer_type"))
    for kind in kinds:
        own = [w for w, target in zip(worth, targets, strict=True) if str(target.get("answer_type", "")) == kind]
        figures[f"vqa_score.{kind}"] = float(np.mean(own))
    return figures, worth


def _worth(answer: str, target: Mapping[str, Any]) -> float:
    """Percent: min(1, 3 x the share of people whose answer this is), on normalised strings."""
    given = [normalize_answer(other) for other in given_answers(target)]
    return 100.0 * min(1.0, 3 * given.count(normalize_answer(answer)) / len(given)) if given else 0.0
