"""Which run answers which verb, and what to train for one that does not."""

from __future__ import annotations

from pathlib import Path

from pixelbert.errors import UsageError
from pixelbert.recipes.schema import Recipe, load_recipe, recipe_names

#: Verb -> the tasks whose runs answer it (the one to train for it first), and what it is about.
VERBS: dict[str, tuple[tuple[str, ...], str]] = {
    "ask": (("question_answering",), "questions"),
    "match": (("retrieval", "pretraining"), "matches"),
    "rank": (("retrieval", "pretraining"), "matches"),
    "compare": (("image_pairs",), "statements about pictures"),
    "fill": (("pretraining",), "hidden words"),
}


def require(verb: str, recipe: Recipe, folder: Path, one_picture: bool = False) -> None:
    """Raises UsageError when a run of this recipe lacks the head for a verb: it says which recipe trains it.

    one_picture: a statement about one picture is to be judged.
    """
    tasks, what = VERBS[verb]
    if recipe.task in tasks:
        return
    source = "" if tasks[0] == "pretraining" else f" --from {folder}"
    raise UsageError(
        f"{folder}: has no head for {what} (its task is {recipe.task}); train one with: "
        f"pixelbert train {recipe_for(tasks[0], recipe, one_picture)} --data DATA --out RUN2{source}"
    )


def recipe_for(task: str, like: Recipe, one_picture: bool = False) -> str:
    """The name of a recipe of that task, of the same CNN where there is one."""
    found = {name: load_recipe(name) for name in recipe_names()}
    names = [name for name, recipe in found.items() if recipe.task == task]
    names.sort(key=lambda name: name.startswith("nlvr-") is not one_picture)  # NLVR's are about one picture
    same = [name for name in names if found[name].backbone.name == like.backbone.name]
    small = [name for name in names if name.endswith("-small")]
    return (same or small or names)[0]


def vectors_from(recipe: Recipe) -> str:
    """What to do for pooled vectors."""
    task = recipe.task if recipe.task in ("pretraining", "retrieval") else "pretraining"
    name = recipe_for(task, recipe)
    return f"train with: pixelbert train {name} --data DATA --out RUN2 contrastive_size=256 loss.contrastive=1"
