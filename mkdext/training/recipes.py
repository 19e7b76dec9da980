"""Recipes: options that go well together, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mkdext.models.registry import muon_rate

TrainingRecipe = Literal["best", "mkd-paper", "plain"]
DataFreeRecipe = Literal["best", "plain"]
Recipes = Mapping[str, Mapping[str, Any]]
"""By name, the options that make a recipe, those of a group as `group.name`."""

BEST = "best"
_AND_NO_MORE: dict[str, Any] = {
    "imitation_end": None,
    "zoom_in_share": 0.0,
    "zoom_out_share": 0.0,
    "made_share": 0.0,
    "hint_share": 0.0,
    "kd_ratio": None,
    "student_init": "random",
}
TRAINING: Recipes = {
    BEST: {"method": "response", "imitation": 1.0, "optimizer": "muon"} | _AND_NO_MORE,
    "mkd-paper": {
        "method": "mkd",
        "imitation": 0.0,
        "optimizer": "adam",
        "kd_maps": "raw",
        "meta.kappa": 0.0,
    }
    | _AND_NO_MORE,
    "plain": {"method": "vanilla", "imitation": 0.0, "optimizer": "adam"} | _AND_NO_MORE,
}
"""`best` is what measures best (docs/results/recipe.md); the others are what it is measured
against: the MKD paper's method, and training without a teacher."""
DATA_FREE: Recipes = {BEST: {"optimizer": "muon"}, "plain": {"optimizer": "adam"}}

_MUON_WARMUP = 100
_MUON_FALL = 1e-3  # of the rate, over a training


def muon_rates(student: str | None) -> dict[str, Any]:
    """Learning rates of Muon, by the options that hold them.

    Args:
        student: As in the options; none: the default one.

    Example:
        >>> muon_rates("vdsr-half")["lr"]
        0.001
    """
    rate = muon_rate(student or "")
    return {"lr": rate, "lr_min": _MUON_FALL * rate, "warmup": _MUON_WARMUP}


def recipe_of(options: Any) -> str | None:
    """The recipe that options follow, whether they name it or not; none: they follow none.

    Example:
        >>> from mkdext.training import TrainOptions
        >>> recipe_of(TrainOptions(method="vanilla"))
        'plain'
    """
    known: Recipes = options.recipes
    for name, values in known.items():
        if all(_fits(options, n, v) for n, v in values.items()):
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
        if not _fits(options, name, value):
            raise ValueError(
                f"`recipe` {options.recipe} sets `{name}` {value}, got {given}; leave one of them "
                "out (from Python, by_recipe of the options makes them)"
            )


def _fits(options: Any, name: str, value: Any) -> bool:
    given = _option(options, name)
    # Resolved, a share that stays is the same at the end.
    return given == value or (name == "imitation_end" and given == options.imitation)


def _option(options: Any, name: str) -> Any:
    for part in name.split("."):
        options = getattr(options, part)
    return options
