"""Visual question answering (Section 4.2): a question about a picture -> an answer from a list.

Data sets differ in how many people answered a question. Ten is VQA 2.0, scored by its official script. Any other number
follows the same idea: an answer's worth is min(1, 3 x the share of people who gave it), which for ten people is the
official 0.3 / 0.6 / 0.9 / 1.0 of the training targets, and for one person is exact match.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelbert.data.batches import Batch, Plan, Records
from pixelbert.data.parts import whole
from pixelbert.errors import DataError
from pixelbert.metrics import normalize_answer, vqa_accuracy, vqa_answer_vocabulary
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.heads import PixelBertForQuestionAnswering
from pixelbert.model.pixels import Grid
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.recipes.schema import Phase, Recipe
from pixelbert.tasks.calibration import Stated
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.objective import Objective, by_length
from pixelbert.tasks.predicting import predict_records, record_outcome, scored_records
from pixelbert.tasks.submission import Submission, once, question_id, read_answers, write_answers
from pixelbert.tasks.task import Outcome, Scoring, Task, common_inputs

OFFICIAL_ANSWERS = 10  # people who answered each question of VQA 2.0
OFFICIAL_MIN_COUNT = 9  # questions of an answer in its list


def vqa_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy summed over answers and questions: [T, answers] each, targets in 0..1."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")


def given_answers(target: Mapping[str, Any]) -> list[str]:
    """The answers people gave to a record's question, as they are; empty where there are none (a test split)."""
    return [entry["answer"] if isinstance(entry, Mapping) else str(entry) for entry in target.get("answers", ())]


def answer_list(targets: Iterable[Mapping[str, Any]], min_count: int | None = None) -> list[str]:
    """The answers a model chooses from: those given to at least `min_count` questions, most frequent first.

    Official annotations count their `multiple_choice_answer`, by the official rule; other data the commonest answer of
    each question. Without `min_count` it is 9, the rule for VQA 2.0; where that would leave out the answers of more
    than a fifth of the questions, the highest lower number that does not (few questions, or answers of great variety).

    Raises DataError when none is left.
    """
    annotations = [
        {"question_id": number, "multiple_choice_answer": _commonest(target)}
        for number, target in enumerate(targets)
        if given_answers(target)
    ]
    if not annotations:
        raise DataError("none of the training questions has an answer")
    if min_count is None:
        min_count = _min_count(normalize_answer(str(one["multiple_choice_answer"])) for one in annotations)
    answers = vqa_answer_vocabulary(annotations, min_count)
    if not answers:
        raise DataError(
            f"no answer is given to at least {min_count} of the {len(annotations)} training questions with answers;"
            " answers.min_count says how many it takes"
        )
    return answers


def _min_count(answers: Iterable[str]) -> int:
    """The highest number, at most 9, such that the answers given so often are those of 4 in 5 questions."""
    counts = Counter(answers)
    for least in range(OFFICIAL_MIN_COUNT, 1, -1):
        if 5 * sum(count for count in counts.values() if count >= least) >= 4 * counts.total():
            return least
    return 1


def _commonest(target: Mapping[str, Any]) -> str:
    if "multiple_choice_answer" in target:
        return str(target["multiple_choice_answer"])
    counts = Counter(given_answers(target))  # keeps the order of first mention among equals
    return counts.most_common(1)[0][0]


def soft_targets(target: Mapping[str, Any], place: Mapping[str, int], normalize: bool = True) -> np.ndarray:
    """Each answer's worth as a training target, float32 [answers]; `place` is an answer's place in the list."""
    worth = np.zeros(len(place), dtype=np.float32)
    for answer, value in _worths(target, normalize).items():
        if answer in place:
            worth[place[answer]] = value
    return worth


def _worths(target: Mapping[str, Any], normalize: bool) -> dict[str, float]:
    """The worth of each answer that was given."""
    given = given_answers(target)
    counts = Counter(normalize_answer(answer) if normalize else answer for answer in given)
    return {answer: min(1.0, round(3 * count / len(given), 6)) for answer, count in counts.items()}


def prior_odds(train: Records, answers: Sequence[str], normalize: bool = True) -> Tensor:
    """Log-odds of each answer's mean worth as a training target, float32 [answers]; of half a question at the least.

    Nearly all of a question's targets over hundreds of answers are 0. A head that starts at even odds for each first
    learns that, in steps that push [CLS] the same way whatever was asked; from here on it learns what differs.
    """
    total = dict.fromkeys(answers, 0.0)
    for record in range(train.num_records):
        for answer, worth in _worths(train.target(record), normalize).items():
            if answer in total:
                total[answer] += worth
    share = torch.tensor(list(total.values()), dtype=torch.float64) / train.num_records
    least = 0.5 / train.num_records
    return share.clamp(least, 1 - least).logit().float()


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
        if self.sampled:
            batch["sampling_seed"] = self.sampling_seeds(plan)[:, 0]
        batch["records"], batch["step"] = records, plan.step
        return batch


@dataclass(frozen=True)
class QuestionLosses:
    """The weight of the one loss."""

    vqa: float = 1.0


class QuestionObjective(Objective):
    """Binary cross-entropy over the answer list, all pixels unless the recipe samples them while fine-tuning too."""

    model: PixelBertForQuestionAnswering

    def losses(self, batch: Batch, grid: Grid, settings: QuestionLosses) -> dict[str, Tensor]:
        """vqa: summed over the questions."""
        return {"vqa": vqa_loss(self.scores(batch, grid), batch["targets"])}

    def scores(self, batch: Batch, grid: Grid) -> Tensor:
        """Logits [T, answers]."""
        ids, mask, images = batch["input_ids"], batch["attention_mask"], batch["image_of_text"]

        def logits(rows: Tensor, length: int) -> Tensor:
            copies = grid.select(images[rows])
            seeds = batch["sampling_seed"][rows] if "sampling_seed" in batch else None
            return self.model(
                ids[rows, :length], attention_mask=mask[rows, :length], grid=copies, sampling_seed=seeds
            ).logits

        return by_length(mask, self.chunks, logits)


def score_answers(records: Records, answers: Mapping[int, str]) -> tuple[dict[str, float], list[float]]:
    """Figures in percent (overall, per answer type, per question type), and each answer's own worth in its order.

    Args:
        answers: record -> answer, for every record that is scored.

    Official data (ten answers a question) goes through the official script's rules; other data by the worth of an
    answer (see above) on normalised strings. Questions whose answers are not in the model's list count like all others.
    """
    targets = {record: records.target(record) for record in answers}
    if all(len(given_answers(target)) == OFFICIAL_ANSWERS for target in targets.values()):
        annotations = [{"answer_type": "", "question_type": "", **t, "question_id": i} for i, t in targets.items()]
        scores = vqa_accuracy(dict(answers), annotations)
        figures = {"vqa_score": scores.overall}
        figures |= {f"vqa_score.{name}": value for name, value in scores.per_answer_type.items() if name}
        figures |= {f"vqa_score.question.{name}": value for name, value in scores.per_question_type.items() if name}
        return figures, [scores.per_question[i] for i in targets]
    worth = [_worth(answers[i], target) for i, target in targets.items()]
    figures = {"vqa_score": float(np.mean(worth))}
    for key, name in (("answer_type", "vqa_score"), ("question_type", "vqa_score.question")):
        by_kind: defaultdict[str, list[float]] = defaultdict(list)
        for own, target in zip(worth, targets.values(), strict=True):
            by_kind[str(target.get(key) or "")].append(own)
        figures |= {f"{name}.{kind}": float(np.mean(values)) for kind, values in by_kind.items() if kind}
    return figures, worth


def _worth(answer: str, target: Mapping[str, Any]) -> float:
    """Percent: min(1, 3 x the share of people whose answer this is), on normalised strings."""
    given = [normalize_answer(other) for other in given_answers(target)]
    return 100.0 * min(1.0, 3 * given.count(normalize_answer(answer)) / len(given)) if given else 0.0


# -- the task of the common loop ---------------------------------------------------------------------------------------


class QuestionAnswering(Task):
    """VQA (Section 4.2.1), and questions of one's own."""

    name = "question_answering"
    data = ("vqa",)
    needs = "questions with answers"
    model_class = PixelBertForQuestionAnswering
    beside = ("vqa_score",)
    least_images = 1

    def model_settings(self, recipe: Recipe, train: Records) -> dict[str, Any]:
        """The answer list of the training records, also those held out of them: it travels in the model's config."""
        records = whole(train)
        targets = (records.target(record) for record in range(records.num_records))
        answers = answer_list(targets, recipe.answers.min_count)
        return {"id2label": dict(enumerate(answers)), "head_dropout": recipe.head.dropout}

    def prior(self, model: PixelBertForQuestionAnswering, recipe: Recipe, train: Records) -> None:
        """With `head.prior`: the head's bias says how often each answer is right, before anything is learnt."""
        if recipe.head.prior:
            answers = [model.config.id2label[i] for i in range(model.config.num_labels)]
            model.start_from_prior(prior_odds(train, answers, recipe.answers.normalize))

    def batches(
        self, recipe: Recipe, records: Records, processor: PixelBertProcessor, config: PixelBertConfig, train: bool
    ) -> QuestionBatches:
        """Targets over the model's own answer list."""
        answers = [config.id2label[i] for i in range(len(config.id2label))]
        common = common_inputs(recipe, records, processor, config, train)
        return QuestionBatches(**common, answers=answers, normalize=recipe.answers.normalize)

    def objective(self, model: Any, encoder_dtype: torch.dtype | None = None, chunks: int = 1) -> QuestionObjective:
        """Binary cross-entropy."""
        return QuestionObjective(model, encoder_dtype, chunks)

    def losses(self, recipe: Recipe, phase: Phase) -> QuestionLosses:
        """One loss, weight 1."""
        return QuestionLosses()

    def counts(self, batch: Batch, losses: QuestionLosses) -> dict[str, int]:
        """Questions."""
        return {"vqa": len(batch["records"])}

    def figure_names(self, recipe: Recipe) -> list[str]:
        """The score over all questions; those of each type depend on the data."""
        return ["vqa_score"]

    def score(self, model: Any, batches: QuestionBatches, scoring: Scoring) -> Outcome:
        """The official score, and a row a question. Raises DataError when a question has no answers to compare with."""
        split, records = batches.records, scored_records(batches, scoring)
        _require_answers(split, records)
        answered = self._answers(model, batches, records, scoring)
        figures, worth = score_answers(split, {r: a for r, (a, _) in zip(records, answered, strict=True)})
        rows = [
            {"record": split.record_id(record), "question": split.text(record), "answer": answer,
             "probability": round(probability, 4), "score": round(value, 2), "right": value > 0,
             "given": dict(Counter(given_answers(target)).most_common()),
             "answer_type": target.get("answer_type", ""), "question_type": target.get("question_type", ""),
             "split_record": record}
            for record, target, (answer, probability), value in zip(
                records, map(split.target, records), answered, worth, strict=True
            )
        ]  # fmt: skip
        outcome = record_outcome(figures, rows, batches)
        stated = [probability for _, probability in answered]
        outcome.stated = lambda: Stated.of_probabilities(stated, np.array(worth) / 100, True, answers=True)
        return outcome

    def check_ids(self, records: Records, split: str) -> None:
        """A question's id is there once."""
        once((question_id(records, r) for r in range(records.num_records)), "question_id", split)

    def predict(self, model: Any, batches: QuestionBatches, scoring: Scoring) -> Submission:
        """VQA's file: an answer for every question."""
        split = batches.records
        answered = self._answers(model, batches, range(split.num_records), scoring)
        text = write_answers(split, [answer for answer, _ in answered])
        return Submission(text, lambda path: read_answers(path, split, "the split", in_order=True), split.num_records)

    def score_file(self, path: Path, records: Records, split: str) -> dict[str, float]:
        """VQA's file: the scores of `score`."""
        self.check_labels(records)
        return score_answers(records, read_answers(path, records, split))[0]

    def check_labels(self, records: Records, among: Sequence[int] | None = None) -> None:
        """Every question needs an answer to compare with."""
        _require_answers(records, range(records.num_records) if among is None else among)

    def _answers(
        self, model: Any, batches: QuestionBatches, records: Sequence[int], scoring: Scoring
    ) -> list[tuple[str, float]]:
        """(answer, probability) of each of these records."""
        logits = predict_records(self.objective(model, scoring.encoder_dtype, 4), batches, records, scoring)
        return answers_of(logits, batches.answers)


def _require_answers(records: Records, among: Sequence[int]) -> None:
    for record in among:
        if not given_answers(records.target(record)):
            raise DataError(f"question {records.record_id(record)}: has no answers; `predict` goes without them")


def answers_of(logits: Tensor, answers: Sequence[str]) -> list[tuple[str, float]]:
    """The best answer of each question with its probability: logits [T, answers]."""
    best, places = logits.float().max(dim=1)  # of the logits: sure answers have all the same probability in float32
    return [(answers[p], float(v)) for p, v in zip(places.tolist(), best.sigmoid().tolist(), strict=True)]
