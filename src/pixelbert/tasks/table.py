"""Every task by its name in a recipe."""

from __future__ import annotations

from pixelbert.tasks.image_pairs import ImagePairs
from pixelbert.tasks.pretraining_task import Pretraining
from pixelbert.tasks.question_answering import QuestionAnswering
from pixelbert.tasks.retrieval_task import Retrieval
from pixelbert.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Pretraining(), QuestionAnswering(), ImagePairs(), Retrieval())}


def task_of_model(class_name: str) -> Task | None:
    """The task of a model class, by the name that a run's config.json has under `architectures`."""
    return next((task for task in TASKS.values() if task.model_class.__name__ == class_name), None)


def task_of_data(kind: str) -> Task | None:
    """The task whose predictions data of this kind can be scored with; pairs are for retrieval."""
    return next((task for task in reversed(TASKS.values()) if kind in task.data), None)
