"""A recipe that is not understood says which key is wrong and which one was meant."""

from __future__ import annotations

import pytest

from mmstream.config import Config, nearest
from mmstream.errors import UsageError


class Optim(Config):
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)


class Run(Config):
    train: str | list[str]
    epochs: int = 1
    optim: Optim = Optim()


def test_yaml_and_dotted_overrides_make_one_config():
    run = Run.from_yaml("train: a\nepochs: 2\n", ["optim.learning_rate=2e-3", "optim.betas=[0.8, 0.9]", "train=[a, b]"])
    assert run == Run(train=["a", "b"], epochs=2, optim=Optim(learning_rate=2e-3, betas=(0.8, 0.9)))


def test_what_is_written_reads_back_equal():
    run = Run(train="s3://b/*.tar", epochs=3)
    assert Run.from_yaml(run.to_yaml()) == run


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("epoch=3", "epochs"),
        ("optim.learning_rat=1", "optim.learning_rate"),
        ("learning_rate=1", "optim.learning_rate"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(written: str, meant: str):
    with pytest.raises(UsageError, match=f"unknown key '{written.split('=')[0]}'; the nearest valid key is '{meant}'"):
        Run.from_yaml("train: a", [written])


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("train: [", [], "r.yaml: not YAML"),
        ("just words", [], "r.yaml: holds no keys"),
        ("epochs: 1", [], "r.yaml: the key 'train' is missing; give it in the file or as train=VALUE"),
        ("trian: a", [], "r.yaml: unknown key 'trian'; the nearest valid key is 'train'"),
        ("train: a\nepochs: many", [], "r.yaml: epochs: .*integer.*'many'"),
        ("train: a", ["epochs"], "override 'epochs': write key=value"),
        ("train: a", ["train.x=1"], "override 'train.x=1': train holds a plain value"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_that_names_the_place(text: str, overrides: list[str], said: str):
    with pytest.raises(UsageError, match=said) as e:
        Run.from_yaml(text, overrides, where="r.yaml")
    assert "\n" not in str(e.value)


def test_yaml_that_would_make_objects_is_refused():
    with pytest.raises(UsageError, match="not YAML"):
        Run.from_yaml("train: !!python/object/apply:os.getcwd []")


def test_fingerprints_differ_where_values_do_and_only_there():
    run = Run(train="a")
    assert run.fingerprint() == Run(train="a").fingerprint()
    assert run.fingerprint() != Run(train="b").fingerprint()
    assert run.fingerprint(apart=frozenset({"epochs"})) == Run(train="a", epochs=9).fingerprint(
        apart=frozenset({"epochs"})
    )


def test_a_config_cannot_be_changed_after_it_was_made():
    with pytest.raises(ValueError, match="frozen"):
        Run(train="a").epochs = 2  # ty: ignore[invalid-assignment]


def test_nearest_prefers_the_last_part_of_a_dotted_key():
    assert nearest("warmup", ["epochs", "optim.warmup", "optim.weight_decay"]) == "optim.warmup"
    assert nearest("decay", ["data", "optim.weight_decay"]) == "optim.weight_decay"
