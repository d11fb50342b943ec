"""A recipe says everything, and what may change in a run is only what does not change what it learns from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from mmstream.errors import UsageError
from mmstream.train.recipe import Recipe

RECIPES = [*Path(str(files("mmstream.demo") / "recipes")).glob("*.yaml")]
RECIPES += [*(Path(__file__).parents[2] / "jobs" / "recipes").glob("*.yaml")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_that_is_shipped_is_valid_and_reads_back_equal(path: Path):
    recipe = Recipe.from_yaml(path.read_text(), where=path.name)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_workers_and_epochs_may_change_and_nothing_else():
    base = Recipe.from_yaml("data: {train: a}")
    for may in ("workers=4", "epochs=9"):
        other = Recipe.from_yaml("data: {train: a}", [may])
        assert other.identity() == base.identity() and base.first_difference(other) is None
    other = Recipe.from_yaml("data: {train: a}", ["optim.learning_rate=1", "seed=3"])
    assert other.identity() != base.identity()
    assert base.first_difference(other) == ("seed", 0, 3)


def test_a_batch_that_cannot_be_cut_into_equal_parts_is_refused():
    with pytest.raises(UsageError, match="batch_size 10 must be a multiple of workers = 3"):
        Recipe.from_yaml("data: {train: a}", ["batch_size=10", "workers=3"])


def test_an_unknown_key_deep_in_a_recipe_names_the_nearest_one():
    with pytest.raises(UsageError, match=r"unknown key 'optim.warm_up'; the nearest valid key is 'optim.warmup'"):
        Recipe.from_yaml("data: {train: a}", ["optim.warm_up=0.1"])
