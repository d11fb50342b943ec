"""A variation depends on (seed, epoch, sample id) and nothing else, and varies what it says by what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmstream.errors import UsageError
from mmstream.media.augment import (
    AudioAugmentation,
    Augmentation,
    ImageAugmentation,
    TextAugmentation,
    caption,
    generator,
    mel,
    picture,
    sound,
)
from mmstream.schema import sample_id

RGB = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
SAMPLES = (0.5 * np.sin(np.arange(8_000) / 9)).astype(np.float32)
MEL = np.random.default_rng(1).standard_normal((100, 40)).astype(np.float32)
WORDS = "a small red circle above a large blue star"
IMAGE = ImageAugmentation(flip=0.5, brightness=0.3, contrast=0.3, saturation=0.3)
AUDIO = AudioAugmentation(gain_db=6, shift=0.3, noise_db=20, band_masks=2, frame_masks=2)
TEXT = TextAugmentation(drop=0.2, swap=0.2)


def varied(seed: int, epoch: int, id: int) -> list[bytes]:
    """The bytes of all four variations."""
    draw = [generator(seed, epoch, id, m) for m in ("image", "audio", "mel", "text")]
    return [
        picture(RGB, (32, 48), IMAGE, draw[0]).tobytes(),
        sound(SAMPLES, AUDIO, draw[1]).tobytes(),
        mel(MEL, AUDIO, draw[2]).tobytes(),
        caption(WORDS, TEXT, draw[3]).encode(),
    ]


def test_the_same_triple_gives_the_same_bytes_in_any_order():
    triples = [(s, e, sample_id(shard, row)) for s in (0, 1) for e in (0, 1) for shard in (0, 3) for row in (0, 7)]
    first = {t: varied(*t) for t in triples}
    for t in [*reversed(triples), *triples[3:9]]:
        assert varied(*t) == first[t]
    for kind in range(3):
        assert len({first[t][kind] for t in triples}) == len(triples)
    assert len({first[t][3] for t in triples}) > len(triples) / 2  # captions have few variations


def test_nothing_is_changed_in_place():
    before = RGB.tobytes(), SAMPLES.tobytes(), MEL.tobytes()
    varied(1, 2, 3)
    assert (RGB.tobytes(), SAMPLES.tobytes(), MEL.tobytes()) == before
    for array in (RGB, SAMPLES, MEL):
        array.flags.writeable = False  # as Ray hands them out
    varied(1, 2, 4)


@given(st.tuples(*[st.integers(0, (1 << 63) - 1)] * 3), st.tuples(*[st.integers(0, (1 << 63) - 1)] * 3))
def test_other_triples_have_other_streams(a: tuple[int, int, int], b: tuple[int, int, int]):
    draws = [generator(*t, "image").integers(0, 1 << 62, 4).tolist() for t in (a, b)]
    assert (draws[0] == draws[1]) == (a == b)
    assert generator(*a, "audio").integers(0, 1 << 62, 4).tolist() != draws[0]


def test_neighbouring_samples_are_not_correlated():
    first = np.array([generator(0, 0, i, "image").random() for i in range(4_000)])
    epochs = np.array([generator(0, e, 5, "image").random() for e in range(4_000)])
    for draws in (first, epochs):
        assert abs(draws.mean() - 0.5) < 0.03 and abs(draws.std() - 12**-0.5) < 0.01
        assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.06


def test_a_picture_that_is_only_resized_is_that_of_pillow():
    from PIL import Image

    whole = ImageAugmentation(area=(1, 1), aspect=(1.5, 1.5))
    expected = np.asarray(Image.fromarray(RGB).resize((48, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(picture(RGB, (32, 48), whole, generator(0, 0, 0, "image")), expected)


def test_crops_have_the_areas_and_aspects_that_were_asked_for():
    y, x = np.mgrid[:200, :300]
    places = np.stack([x * 255 / 299, y * 255 / 199, 0 * x], -1).round().astype(np.uint8)
    config, areas, aspects, tops = ImageAugmentation(area=(0.2, 0.6), aspect=(0.5, 2.0)), [], [], []
    for i in range(400):
        crop = picture(places, (64, 64), config, generator(0, 0, i, "image")).astype(float)
        wide, tall = np.ptp(crop[..., 0]) / 255 * 300, np.ptp(crop[..., 1]) / 255 * 200
        areas.append(wide * tall / 60_000)
        aspects.append(wide / tall)
        tops.append(crop[..., 1].min())
    assert 0.17 < min(areas) < 0.25 and 0.5 < max(areas) < 0.63
    assert 0.45 < min(aspects) < 0.7 and 1.5 < max(aspects) < 2.2
    assert abs(np.log(aspects).mean()) < 0.15 and min(tops) < 10 and max(tops) > 60


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (7, 3)])
def test_pictures_of_any_size_can_be_cropped(size: tuple[int, int]):
    rgb = np.full((*size, 3), 99, np.uint8)
    for i in range(20):
        out = picture(rgb, (8, 8), ImageAugmentation(), generator(0, 0, i, "image"))
        assert out.shape == (8, 8, 3) and (out == 99).all()


def test_pictures_are_mirrored_as_often_as_asked():
    half = np.zeros((20, 20, 3), np.uint8)
    half[:, :10] = 255
    config = ImageAugmentation(area=(1, 1), aspect=(1, 1), flip=0.3)
    mirrored = [picture(half, (20, 20), config, generator(0, 0, i, "image"))[0, 0, 0] == 0 for i in range(1_000)]
    assert abs(np.mean(mirrored) - 0.3) < 0.05


def test_colours_vary_within_their_ranges_and_grey_stays_grey():
    config = ImageAugmentation(area=(1, 1), aspect=(1, 1), brightness=0.2)
    grey = np.full((8, 8, 3), 100, np.uint8)
    levels = np.array([picture(grey, (8, 8), config, generator(0, 0, i, "image"))[0, 0] for i in range(300)])
    assert (levels == levels[:, :1]).all() and 80 <= levels.min() < 84 and 116 < levels.max() <= 120
    plain = ImageAugmentation(area=(1, 1), aspect=(1, 1), contrast=0.5, saturation=0.5)
    assert np.abs(picture(grey, (8, 8), plain, generator(0, 0, 1, "image")).astype(int) - 100).max() <= 1
    plain = ImageAugmentation(area=(1, 1), aspect=(1, 1), saturation=0.5)
    red = np.zeros((8, 8, 3), np.uint8) + np.array([200, 50, 50], np.uint8)
    spread = [np.ptp(picture(red, (8, 8), plain, generator(0, 0, i, "image"))[0, 0]) for i in range(200)]
    assert 70 < min(spread) < 90 and 210 < max(spread) <= 226


def test_sounds_are_louder_or_softer_moved_and_noisy_by_what_was_asked():
    gains = [sound(SAMPLES, AudioAugmentation(gain_db=6), generator(0, 0, i, "audio")) for i in range(200)]
    decibels = 20 * np.log10([np.abs(g).max() / np.abs(SAMPLES).max() for g in gains])
    assert -6 <= decibels.min() < -5 and 5 < decibels.max() <= 6 and abs(decibels.mean()) < 0.7
    click = np.zeros(1_000, np.float32)
    click[500] = 1
    moved = [sound(click, AudioAugmentation(shift=0.2), generator(0, 0, i, "audio")).argmax() for i in range(200)]
    assert 300 <= min(moved) < 330 and 670 < max(moved) <= 700
    noisy = [sound(SAMPLES, AudioAugmentation(noise_db=20), generator(0, 0, i, "audio")) for i in range(200)]
    below = [10 * np.log10(np.mean(SAMPLES**2) / np.mean((n - SAMPLES) ** 2)) for n in noisy]
    assert 19.5 < min(below) < 21 and all(n.dtype == np.float32 for n in (*gains, *noisy))
    assert sound(np.zeros(0, np.float32), AUDIO, generator(0, 0, 0, "audio")).shape == (0,)
    assert (sound(np.zeros(5, np.float32), AUDIO, generator(0, 0, 0, "audio")) == 0).all()


def test_masks_cover_whole_bands_and_whole_frames_and_no_more_than_asked():
    config = AudioAugmentation(band_masks=1, band_share=0.25, frame_masks=1, frame_share=0.1)
    bands, frames = [], []
    for i in range(200):
        changed = mel(MEL, config, generator(0, 0, i, "mel")) != MEL
        bands.append(int(changed.all(axis=0).sum()))
        frames.append(int(changed.all(axis=1).sum()))
        assert changed.sum() == bands[-1] * 100 + frames[-1] * 40 - bands[-1] * frames[-1]
    assert (min(bands), max(bands)) == (0, 10) and (min(frames), max(frames)) == (0, 10)
    assert mel(np.zeros((0, 40), np.float32), config, generator(0, 0, 0, "mel")).shape == (0, 40)


def test_words_are_left_out_and_swapped_as_often_as_asked_and_never_made_up():
    text = " ".join(f"w{i}" for i in range(50))
    dropped = [caption(text, TextAugmentation(drop=0.2), generator(0, 0, i, "text")).split() for i in range(200)]
    assert abs(np.mean([len(d) for d in dropped]) - 40) < 1
    assert all(sorted(d, key=lambda w: int(w[1:])) == d for d in dropped)
    swapped = [caption(text, TextAugmentation(swap=0.1), generator(0, 0, i, "text")).split() for i in range(200)]
    assert all(sorted(s) == sorted(text.split()) for s in swapped)
    assert 3 < np.mean([sum(w != f"w{i}" for i, w in enumerate(s)) / 2 for s in swapped]) < 6
    for i in range(50):
        assert caption("one two", TextAugmentation(drop=1), generator(0, 0, i, "text")) in ("one", "two")
    assert caption("", TEXT, generator(0, 0, 0, "text")) == ""


def test_what_is_not_asked_for_is_left_alone():
    none = generator(0, 0, 0, "image")
    assert np.array_equal(sound(SAMPLES, AudioAugmentation(), none), SAMPLES)
    assert np.array_equal(mel(MEL, AudioAugmentation(), none), MEL)
    assert caption(WORDS, TextAugmentation(), none) == WORDS
    assert Augmentation() == Augmentation(image=None, audio=None, text=None)


def test_a_recipe_configures_it_and_a_wrong_key_is_named():
    config = Augmentation.from_yaml("image: {flip: 0.5, area: [0.3, 1]}\ntext: {drop: 0.1}")
    assert config.image is not None and config.image.area == (0.3, 1) and config.audio is None
    with pytest.raises(UsageError, match=r"image\.flipp"):
        Augmentation.from_yaml("image: {flipp: 0.5}")
    with pytest.raises(UsageError, match=r"text\.drop"):
        Augmentation.from_yaml("text: {drop: 2}")
