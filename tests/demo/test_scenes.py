"""The generator knows the answers: what it says of a scene is true, and it counts what else it is true of."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from mmstream.demo.scene_shards import count_fits, scene_of, write_scenes
from mmstream.demo.scenes import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    Claim,
    Scene,
    Thing,
    draw,
    fits,
    make_scene,
)


def scenes(n: int, *, unseen_pair: bool = False) -> list[Scene]:
    return [make_scene(Random(i), unseen_pair=unseen_pair) for i in range(n)]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.tar"))
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    report = write_scenes(str(folder), num_train=300, num_test=120, num_unseen=60, seed=3)
    assert (report.num_train, report.num_test, report.num_unseen, report.shards) == (300, 120, 60, 3)
    return folder


def samples(tar_path: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar_path) as tar:
        for member in tar:
            key, suffix = member.name.split(".", 1)
            found.setdefault(key, {})[suffix] = tar.extractfile(member).read()  # ty: ignore[missing-union-attribute]
    return found


def test_eight_shapes_eight_colours_and_one_to_three_things_a_scene():
    made = scenes(2_000)
    assert len(SHAPES) == len(COLOURS) == 8 and len(SIZES) == 3
    numbers = np.bincount([len(s.things) for s in made], minlength=4)[1:] / len(made)
    assert np.abs(numbers - [0.15, 0.40, 0.45]).max() < 0.04
    assert max(len(c.split()) for s in made for c in s.captions) <= 26


def test_training_never_shows_a_held_out_pair_and_every_unseen_scene_does():
    assert len(set(HELD_OUT.values())) == 8
    assert not any(s.unseen_pair for s in scenes(1_000))
    assert all(s.unseen_pair for s in scenes(1_000, unseen_pair=True))


def test_the_first_caption_is_true_and_the_swapped_one_is_false():
    for scene in scenes(1_000):
        assert fits(scene.claim, scene.things)
        if scene.swapped:
            assert not fits(scene.claim.swapped(), scene.things)
            same = [a == b for a, b in zip(scene.captions[0].split(), scene.swapped.split(), strict=True)]
            assert same.count(False) == len(scene.claim.relations)
        else:
            assert len(scene.things) == 1 or len({(t.colour, t.shape) for t in scene.things}) < len(scene.things)


def test_a_caption_fits_only_scenes_with_exactly_its_things():
    red, blue = Thing("red", "circle", "small", 10, 30), Thing("blue", "star", "large", 40, 30)
    two = Claim((("red", "circle", ""), ("blue", "star", "large")), ((0, "left", 1),))
    assert fits(two, (red, blue)) and fits(two, (blue, red))
    assert not fits(two, (red,)) and not fits(two, (red, blue, Thing("red", "ring", "small", 10, 50)))
    assert not fits(Claim(two.things, ((0, "above", 1),)), (red, blue))
    assert not fits(Claim((("red", "circle", "large"), two.things[1])), (red, blue))
    assert fits(Claim((("red", "circle", ""),), place="left"), (red,))
    assert not fits(Claim((("red", "circle", ""),), place="top left"), (red,))


def test_counted_fits_equal_asking_every_scene_about_every_caption():
    made = scenes(450) + scenes(150, unseen_pair=True)
    slow = [sum(fits(a.claim, b.things) for b in made) for a in made]
    assert count_fits(made) == slow and max(slow) > 1


def test_things_are_where_the_scene_says_and_have_its_colour():
    for n, scene in enumerate(scenes(100)):
        pixels = np.asarray(draw(scene, Random(n)), np.int32)
        assert pixels.shape == (64, 64, 3)
        for thing in (t for t in scene.things if t.shape not in ("ring", "moon")):
            seen = pixels[round(thing.y), round(thing.x)]
            distances = {name: np.abs(seen - rgb).sum() for name, (rgb, _) in COLOURS.items()}
            assert min(distances, key=lambda name: distances[name]) == thing.colour


def test_a_sample_holds_its_picture_its_captions_and_the_truth_about_them(written: Path):
    found = samples(written / "test" / "00000.tar")
    assert len(found) == 120
    for parts in found.values():
        about = json.loads(parts["json"])
        assert sorted(parts) == ["jpg", "json", "txt"] and Image.open(io.BytesIO(parts["jpg"])).size == (64, 64)
        assert len(about["captions"]) == 4 and about["captions"][0] == parts["txt"].decode()
        assert about["fits"] >= 1 and about["unseen_pair"] is False
        assert {"colour", "shape", "size", "x", "y"} == set(about["objects"][0])
    assert all(json.loads(p["json"])["unseen_pair"] for p in samples(written / "test" / "00001.tar").values())


def test_a_sample_s_scene_is_known_by_its_key(written: Path):
    for tar in ("test/00000.tar", "test/00001.tar", "train/00000.tar"):
        for key, parts in samples(written / tar).items():
            assert [asdict(thing) for thing in scene_of(key, seed=3).things] == json.loads(parts["json"])["objects"]


def test_the_same_seed_gives_the_same_bytes(written: Path, tmp_path: Path):
    write_scenes(str(tmp_path), num_train=300, num_test=120, num_unseen=60, seed=3)
    assert digests(tmp_path) == digests(written)


def test_train_and_test_share_no_scene(written: Path):
    pictures = [p["jpg"] for tar in written.rglob("*.tar") for p in samples(tar).values()]
    assert len(pictures) == len(set(pictures)) == 480


def test_another_seed_gives_other_scenes_and_progress_counts_every_one(written: Path, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    write_scenes(str(tmp_path), num_train=30, num_test=20, num_unseen=10, on_progress=lambda *p: seen.append(p))
    assert seen[-1] == (60, 60) and [d for d, _ in seen] == sorted(d for d, _ in seen)
    first, second = (samples(folder / "train" / "00000.tar")["train-000000"] for folder in (written, tmp_path))
    assert first["jpg"] != second["jpg"] and first["txt"] != second["txt"]
