"""What `pixelbert recipes` shows: every recipe with its paper section, data, command and expected score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pixelbert.recipes.schema import load_recipe, recipe_names

if TYPE_CHECKING:
    from rich.console import Console

FACTS = ("description", "paper", "needs", "command", "expected")


def list_recipes() -> list[dict[str, str]]:
    """name, description, paper, needs, command and expected of every recipe that comes with the package."""
    return [_facts(name) for name in recipe_names()]


def describe(name: str) -> dict[str, Any]:
    """The facts of one recipe (a name or a YAML file) and all its settings, parents included.

    Raises UsageError for an unknown name, with the nearest one.
    """
    settings = load_recipe(name).model_dump(mode="json", exclude={"name", "command", *FACTS})
    return {**_facts(name), "settings": settings}


def _facts(name: str) -> dict[str, str]:
    recipe = load_recipe(name)
    return {"name": recipe.name or name, **{fact: getattr(recipe, fact) for fact in FACTS}}


def show(recipes: list[dict[str, str]], console: Console) -> None:
    """Print the recipes, a block of lines each; lines are not broken, so that a command can be copied."""
    from rich.text import Text

    for recipe in recipes:
        console.print(Text.assemble((recipe["name"], "bold"), f"  {recipe['description']}"), soft_wrap=True)
        for fact in FACTS[1:]:
            console.print(Text.assemble((f"    {fact:10}", "dim"), recipe[fact] or "-"), soft_wrap=True)
        console.print()


def text(recipe: dict[str, Any]) -> str:
    """One recipe in full: its facts as comments, then every setting as YAML that can be saved and changed."""
    import yaml

    facts = "\n".join(f"# {fact}: {recipe[fact]}" for fact in FACTS if recipe[fact])
    settings = {"name": recipe["name"], **recipe["settings"]}
    return f"{facts}\n{yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=110)}"
