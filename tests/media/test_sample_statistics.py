"""Samples are measured, counted and merged: nothing of a sample is lost, and no order of merges changes a byte."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sounds import encoded, tones

from mmstream.errors import RefusedError, Rejected, UsageError
from mmstream.media import audio
from mmstream.media.decoding import Direct
from mmstream.media.sample_statistics import (
    MAX_FIELDS,
    MergedInOrder,
    SampleTally,
    Wanted,
    checked_kinds,
    measured,
    numbers_of,
)
from mmstream.media.statistics_file import StatisticsFile, read_statistics

DIGEST = "0" * 64


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def sample(**parts: Any) -> dict[str, Any]:
    return dict.fromkeys(("image", "audio", "text", "json", "reason", "detail")) | parts


def counted(samples: Sequence[dict[str, Any]], wanted: Wanted) -> SampleTally:
    tally = SampleTally(wanted)
    for one in samples:
        try:
            tally.add(measured(one, wanted, Direct()))
        except Rejected as e:
            tally.add(e)
    tally.flush()
    return tally


def test_every_sample_is_used_or_counts_under_its_reason_and_absent_parts_are_said() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    samples = [
        sample(image=png(pixels), text="two words", json='{"n": 1, "deep": {"er": 2.5}, "ok": true, "s": "7"}'),
        sample(text="a caption of five words", json='{"n": null}'),
        sample(json='{"n": 4, "n2": [3]}'),
        sample(image=b"no picture", text="x"),
        sample(image=png(pixels), json="{"),
        sample(reason="duplicate_key", detail="twice"),
        sample(),
    ]
    file = counted(samples, Wanted()).file(DIGEST, None)
    assert (file.samples, file.used) == (7, 3)
    assert file.rejects == {"duplicate_key": 1, "metadata": 1, "missing_member": 1, "not_image": 1}
    assert file.present == {"image": 1, "audio": 0, "numbers": 2, "captions": 2}
    assert file.audio is None and file.image is not None and file.numbers is not None and file.captions is not None
    assert [f.mean for f in file.image.features] == pytest.approx(pixels.reshape(-1, 3).mean(0), rel=1e-12)
    found = {f.name: (f.count, f.missing, f.mean) for f in file.numbers.features}
    assert found == {"deep.er": (1, 2, 2.5), "n": (2, 1, 2.5), "ok": (1, 2, 1.0)}
    assert [(f.name, f.count, f.missing, f.mean) for f in file.captions.features] == [
        ("characters", 2, 1, 16.0),
        ("words", 2, 1, 3.5),
    ]


def test_mel_bands_are_those_of_every_frame() -> None:
    sounds = [encoded("wav", tones(seconds)) for seconds in (0.4, 1.7, 0.9)]
    wanted = Wanted(of=frozenset({"audio"}))
    file = counted([sample(audio=s) for s in sounds], wanted).file(DIGEST, None)
    frames = []
    for data in sounds:
        with Direct().sound(data) as sound:
            frames.append(audio.transform(audio.clean(sound), sound.rate, wanted.mel))
    mel = np.concatenate(frames).astype(np.float64)
    statistics = file.kind("audio", "here")
    assert np.allclose([f.mean for f in statistics.features], mel.mean(0), rtol=1e-12, atol=1e-12)
    assert np.allclose([f.variance for f in statistics.features], mel.var(0), rtol=1e-12, atol=0)
    assert statistics.settings["mel"] == wanted.mel.model_dump(mode="json")


def test_named_fields_are_looked_up_in_objects_and_hold_what_numbers_may_be() -> None:
    about = {"a": {"b": "3.5", "c.d": 1}, "a.b": None, "w": 640}
    assert numbers_of(about, ["w", "a.c.d"]) == {"w": 640.0, "a.c.d": 1.0}
    assert numbers_of({"a": {"b": "3.5"}}, ["a.b"]) == {"a.b": 3.5}
    found = numbers_of(about, ["w", "none"])
    assert found["w"] == 640 and np.isnan(found["none"])
    assert numbers_of(about, ["none"]) == {}  # nothing of what is wanted is there
    with pytest.raises(Rejected, match="metadata"):
        numbers_of({"w": "wide"}, ["w"])


def test_a_field_that_was_named_and_never_there_is_in_the_file_with_no_value() -> None:
    wanted = Wanted(fields=("w", "absent"))
    file = counted([sample(text="x", json='{"w": 2}')] * 3, wanted).file(DIGEST, None)
    assert file.numbers is not None
    assert [(f.name, f.count, f.missing, f.mean) for f in file.numbers.features] == [
        ("w", 3, 0, 2.0),
        ("absent", 0, 3, None),
    ]


def test_json_of_a_stranger_does_not_fill_the_file() -> None:
    with pytest.raises(Rejected, match="over 1,000 numbers"):
        numbers_of({f"f{i}": i for i in range(MAX_FIELDS + 1)}, None)
    with pytest.raises(Rejected, match="metadata"):
        numbers_of({"\ud800": 1}, None)
    with pytest.raises(Rejected, match="metadata"):
        numbers_of({"x" * 300: 1}, None)
    tally = SampleTally(Wanted())
    with pytest.raises(UsageError, match="--field"):
        for i in range(2):
            tally.merge(counted([sample(json=json.dumps({f"f{i}.{n}": n for n in range(MAX_FIELDS)}))], Wanted()))


VALUES = st.lists(st.floats(-1e9, 1e9) | st.none(), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.lists(st.integers(0, 40), max_size=9), st.randoms(use_true_random=False))
def test_parts_that_come_in_any_order_give_the_same_bytes_and_numpys_numbers(
    values: list[float | None], cuts: list[int], random: Any
) -> None:
    wanted = Wanted(of=frozenset({"numbers", "captions"}))
    samples = [sample(text="word " * (1 + i % 3), json=json.dumps({"v": v})) for i, v in enumerate(values)]
    edges = [0, *sorted(c % (len(samples) + 1) for c in cuts), len(samples)]
    parts = [counted(samples[a:b], wanted) for a, b in pairwise(edges)]
    files = []
    for shuffled in (False, True):
        merged, order = MergedInOrder(), list(range(len(parts)))
        if shuffled:
            random.shuffle(order)
        for number in order:
            merged.add(number, SampleTally.of_json(parts[number].to_json(), wanted))
        files.append(merged.total(SampleTally(wanted)).file(DIGEST, None))
    assert files[0].to_bytes() == files[1].to_bytes()
    assert files[0].samples == len(values) == files[0].used
    known = np.array([v for v in values if v is not None])
    assert files[0].captions is not None and files[0].captions.features[1].count == len(values)
    if not len(known):
        assert files[0].numbers is None
        return
    (feature,) = files[0].kind("numbers", "here").features
    assert (feature.count, feature.missing) == (len(known), len(values) - len(known))
    assert feature.mean is not None
    scale = np.abs(known).max() + 1e-300
    assert abs(feature.mean + feature.mean_low - known.mean()) <= 1e-12 * scale
    assert abs(feature.std - known.std()) <= 1e-12 * scale


def test_what_is_held_of_a_thousand_parts_is_a_few() -> None:
    merged, empty = MergedInOrder(), Wanted(of=frozenset({"captions"}))
    for number in range(1000):
        merged.add(number, counted([sample(text="x")], empty))
        assert len(merged._held) <= 10
    assert merged.total(SampleTally(empty)).samples == 1000


def test_a_file_comes_back_as_it_was_and_another_is_told_from_it(tmp_path: Path) -> None:
    url = tmp_path / "statistics.json"
    file = counted([sample(text="x", json='{"w": 1}')], Wanted()).file(DIGEST, 5)
    url.write_bytes(file.to_bytes())
    assert read_statistics(str(url)) == file
    with pytest.raises(UsageError, match=r"no statistics of image \(it has numbers, captions"):
        file.kind("image", str(url))
    url.write_bytes(file.to_bytes().replace(b'"used":1', b'"used":2').replace(b'"used": 1', b'"used": 2'))
    with pytest.raises(UsageError, match="Make it again"):
        read_statistics(str(url))
    url.write_text("{}")
    with pytest.raises((UsageError, RefusedError), match=r"statistics\.json"):
        read_statistics(str(url))
    with pytest.raises(UsageError, match="colours"):
        checked_kinds(["colours"])
    assert StatisticsFile.from_bytes(file.to_bytes()) == file
