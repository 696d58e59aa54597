"""The official scores of VQA, NLVR2 and image-text retrieval, in plain Python and NumPy.

Each function follows one reference script, named in its docstring, down to that script's slips: where a rule looks
odd, the comment beside it says so. Nothing here knows the rest of the package, reads a file or changes its arguments.
Wrong input is a `ValueError` with one sentence that names the question, example, image or text. `docs/metrics.md`
tells the same rules with examples.
"""

from pixelbert.metrics.nlvr2 import Nlvr2Scores, nlvr2_scores
from pixelbert.metrics.retrieval import BothDirections, RecallScores, recall_scores
from pixelbert.metrics.vqa import (
    VqaScores,
    normalize_answer,
    vqa_accuracy,
    vqa_answer_vocabulary,
    vqa_soft_targets,
)

__all__ = [
    "BothDirections",
    "Nlvr2Scores",
    "RecallScores",
    "VqaScores",
    "nlvr2_scores",
    "normalize_answer",
    "recall_scores",
    "vqa_accuracy",
    "vqa_answer_vocabulary",
    "vqa_soft_targets",
]
