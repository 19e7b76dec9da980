"""Recipes: options that go well together, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

TrainingRecipe = Literal["best", "mkd-paper", "plain"]
DataFreeRecipe = Literal["best", "plain"]
Recipes = Mapping[str, Mapping[str, Any]]
"""By name, the options that make a recipe, those of a group as `group.name`."""

BEST = "best"
TRAINING: Recipes = {
    # The teacher's picture takes the place of the truth; beside it the loss of the method would be
    # the same once more.
    BEST: {"method": "response", "kd_weight": 0.0, "imitation": 1.0, "optimizer": "muon"},
    "mkd-paper": {
        "method": "mkd",
        "imitation": 0.0,
        "optimizer": "adam",
        "kd_maps": "raw",
        "meta.kappa": 0.0,
    },
    "plain": {"method": "vanilla", "imitation": 0.0, "optimizer": "adam"},
}
"""`best` is what measures best (docs/results/recipe.md); the others are what it is measured
against: the MKD paper's method, and training without a teacher."""
DATA_FREE: Recipes = {BEST: {"optimizer": "muon"}, "plain": {"optimizer": "adam"}}

MUON_RATES: Mapping[str, Any] = {"lr": 4e-3, "lr_min": 4e-6, "warmup": 100}
"""Learning rates for Muon."""


def recipe_of(options: Any) -> str | None:
    """The recipe that options follow, whether they name it or not; none: they follow none.

    Example:
        >>> from mkdext.training import TrainOptions
        >>> recipe_of(TrainOptions(method="vanilla"))
        'plain'
    """
    known: Recipes = options.recipes
    for name, values in known.items():
        if all(_option(options, key) == value for key, value in values.items()):
            return name
    return None


def require_known(recipe: str | None, recipes: Recipes) -> None:
    """Check a name, if there is one.

    Raises:
        ValueError: There is no such recipe.
    """
    if recipe is not None and recipe not in recipes:
        raise ValueError(f"`recipe` must be one of {', '.join(recipes)}, got {recipe!r}")


def check_recipe(options: Any) -> None:
    """Check that options are those of the recipe that they name.

    Raises:
        ValueError: One is another.
    """
    for name, value in options.recipes.get(options.recipe or "", {}).items():
        given = _option(options, name)
        if given != value:
            raise ValueError(
                f"`recipe` {options.recipe} sets `{name}` {value}, got {given}; leave one of them "
                "out"
            )


def _option(options: Any, name: str) -> Any:
    for part in name.split("."):
        options = getattr(options, part)
    return options
