"""Every sample leaves as pixels and tokens or as a reject with its reason, and every epoch holds each of them once."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmstream.errors import Reason, Rejected, UsageError
from mmstream.media.augment import Augmentation, ImageAugmentation, TextAugmentation
from mmstream.media.statistics import PixelTally
from mmstream.media.statistics_file import StatisticsFile
from mmstream.media.text import Tokenizer, train_tokenizer
from mmstream.models.card import Preprocessing
from mmstream.schema import SAMPLE
from mmstream.train.data import Batch, Batcher, Prepare, captions_of, preprocessing_of
from mmstream.train.recipe import Recipe


def jpeg(colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, "JPEG")
    return out.getvalue()


def sample(row: int, **given) -> dict:
    empty = dict.fromkeys(SAMPLE.names)
    about = {"id": row, "shard": 0, "row": row, "key": f"k{row}", "offset": row * 512}
    return {**empty, **about, "image": jpeg(), "text": "a red thing", **given}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a red thing", "a blue thing"], 300)


def prepared(tokenizer: Tokenizer, samples: list[dict], epoch: int = 0, captions: str | None = None):
    prepare = Prepare(Preprocessing(size=16), tokenizer, 8, captions, seed=5)
    return prepare(pa.Table.from_pylist(samples, schema=SAMPLE), epoch)


def test_good_samples_become_pixels_tokens_and_ids_in_their_order(tokenizer: Tokenizer):
    batch, rejects = prepared(tokenizer, [sample(0), sample(1, image=jpeg((10, 10, 220)), text="a blue thing")])
    assert batch.pixels.shape == (2, 16, 16, 3) and batch.pixels.dtype == np.uint8 and not rejects
    assert batch.ids.tolist() == [0, 1]
    assert (batch.tokens == tokenizer.tokenize(["a red thing", "a blue thing"], 8)).all()
    assert batch.pixels[0, 8, 8, 0] > 150 > batch.pixels[1, 8, 8, 0]


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        ({"image": b"not a picture"}, Reason.NOT_IMAGE),
        ({"image": jpeg()[:200]}, Reason.IMAGE_TRUNCATED),
        ({"image": None}, Reason.MISSING_MEMBER),
        ({"text": None}, Reason.MISSING_MEMBER),
        ({"text": " \x00"}, Reason.CAPTION),
        ({"text": None, "json": "{"}, Reason.METADATA),
        ({"text": None, "json": "[]"}, Reason.METADATA),
        ({"image": None, "reason": "duplicate_key", "detail": "twice"}, Reason.DUPLICATE_KEY),
    ],
)
def test_a_sample_that_cannot_be_used_is_one_reject_and_the_others_go_on(tokenizer, given_: dict, reason: Reason):
    batch, rejects = prepared(tokenizer, [sample(0), sample(1, **given_), sample(2)])
    assert batch.ids.tolist() == [0, 2] and len(batch.tokens) == 2
    assert [(r["row"], r["key"], r["reason"]) for r in rejects] == [(1, "k1", reason)] and rejects[0]["detail"]


def test_a_chunk_of_rejects_only_is_an_empty_batch(tokenizer: Tokenizer):
    batch, rejects = prepared(tokenizer, [sample(0, image=None)])
    assert (
        len(batch) == 0 and batch.pixels.shape == (0, 16, 16, 3) and batch.tokens.shape == (0, 8) and len(rejects) == 1
    )


def test_captions_come_from_the_field_that_is_asked_for_then_the_text_then_the_json():
    about = json.dumps({"captions": ["one", " two ", ""], "caption": "fourth"})
    assert captions_of(sample(0, json=about), "captions") == ["one", "two"]
    assert captions_of(sample(0, json=about), "others") == ["a red thing"]
    assert captions_of(sample(0, json=about), None) == ["a red thing"]
    assert captions_of(sample(0, text=None, json=about), None) == ["fourth"]
    with pytest.raises(Rejected, match="no caption"):
        captions_of(sample(0, text=None, json="{}"), None)


def test_the_caption_of_an_epoch_depends_on_seed_epoch_and_sample_alone_and_all_are_drawn(tokenizer: Tokenizer):
    words = ["red", "blue", "thing", "a"]
    rows = [sample(i, json=json.dumps({"captions": words})) for i in range(64)]
    epochs = [prepared(tokenizer, rows, epoch, "captions")[0].tokens for epoch in range(3)]
    again = prepared(tokenizer, rows[40:], 1, "captions")[0].tokens
    assert (again == epochs[1][40:]).all() and not (epochs[0] == epochs[1]).all()
    shares = np.unique(np.concatenate(epochs)[:, 1], return_counts=True)[1] / 192
    assert len(shares) == 4 and shares.min() > 0.15


def varied(tokenizer: Tokenizer, samples: list[dict], epoch: int, seed: int = 5) -> Batch:
    config = Augmentation(image=ImageAugmentation(area=(0.3, 0.9), flip=0.5), text=TextAugmentation(drop=0.4))
    prepare = Prepare(Preprocessing(size=16), tokenizer, 8, None, seed, config)
    batch, rejects = prepare(pa.Table.from_pylist(samples, schema=SAMPLE), epoch)
    assert not rejects
    return batch


def test_how_a_sample_is_varied_depends_on_seed_epoch_and_sample_alone(tokenizer: Tokenizer):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    rows = [sample(i, image=out.getvalue(), text="a red thing " * 2) for i in range(24)]
    first, again = varied(tokenizer, rows, 1), varied(tokenizer, rows[10:], 1)
    assert (again.pixels == first.pixels[10:]).all() and (again.tokens == first.tokens[10:]).all()
    assert first.pixels.shape == (24, 16, 16, 3) and len({p.tobytes() for p in first.pixels}) == 24
    assert len({t.tobytes() for t in first.tokens}) > 6
    for other in (varied(tokenizer, rows, 2), varied(tokenizer, rows, 1, seed=6)):
        assert not (other.pixels == first.pixels).all(axis=(1, 2, 3)).any()
        assert (other.tokens != first.tokens).any()


def test_pixels_are_scaled_by_the_statistics_of_the_shards():
    tally = PixelTally()
    tally.update(np.stack([np.full((2, 2), v, np.uint8) for v in (10, 100, 200)], axis=-1))
    tally.update(np.stack([np.full((2, 2), v, np.uint8) for v in (30, 100, 255)], axis=-1))
    about = {"catalog_sha256": "", "limit": None, "of": ["image"], "fields": None, "samples": 2, "used": 2}
    found = StatisticsFile(**about, rejects={}, damaged=[], present={"image": 2}, image=tally.statistics())
    values = {"data": {"train": "x", "statistics": "s.json"}}
    pixels = torch.tensor([[[[10, 100, 200]]]], dtype=torch.uint8)
    scaled = preprocessing_of(Recipe.checked(values), found).normalized(pixels)
    assert scaled.flatten().tolist() == pytest.approx([-1, 0, -1], abs=1e-5)
    values["data"]["scaling"] = "minmax"
    scaled = preprocessing_of(Recipe.checked(values), found).normalized(pixels)
    assert scaled.flatten().tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    with pytest.raises(UsageError, match=r"s\.json: has no statistics of image"):
        preprocessing_of(Recipe.checked(values), found.model_copy(update={"image": None}))
    assert preprocessing_of(Recipe.checked(values), None) == Preprocessing(size=64)


def numbered(ids: range) -> Batch:
    array = np.array(ids, np.int64)
    pixels = np.broadcast_to(array.astype(np.uint8)[:, None, None, None], (len(array), 2, 2, 3))
    return Batch(pixels, array[:, None].astype(np.int32), array)


def cut(rows: int, epochs: int, batch_size: int, shuffle_rows: int, chunk: int = 7, seed: int = 0) -> list[list[Batch]]:
    batcher = Batcher(batch_size, shuffle_rows, seed)
    result: list[list[Batch]] = []
    for epoch in range(epochs):
        batches: list[Batch] = []
        for start in range(0, rows, chunk):
            batches += batcher.add(numbered(range(start, min(start + chunk, rows))))
        batches += batcher.end_epoch(epoch)
        assert batcher.num_held < batch_size
        result.append(batches)
    return result


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 90), st.integers(1, 4), st.integers(1, 20), st.integers(0, 40), st.integers(1, 50))
def test_every_sample_is_used_once_an_epoch_but_for_the_last_leftover(rows, epochs, batch_size, shuffle_rows, chunk):
    batches = [b for epoch in cut(rows, epochs, batch_size, shuffle_rows, chunk) for b in epoch]
    used = np.bincount(np.concatenate([b.ids for b in batches]) if batches else [], minlength=rows)
    assert len(batches) == rows * epochs // batch_size and all(len(b) == batch_size for b in batches)
    assert used.sum() == len(batches) * batch_size
    assert (used <= epochs).all() and rows * epochs - used.sum() < batch_size


def test_pixels_tokens_and_ids_stay_together_when_they_are_mixed():
    for batch in cut(80, 2, 8, 30)[1]:
        assert (batch.tokens[:, 0] == batch.ids).all() and (batch.pixels[:, 1, 1, 2] == batch.ids).all()


def test_the_same_seed_mixes_the_same_way_and_epochs_are_mixed_anew():
    a, b, c = (cut(64, 2, 8, 16, seed=s) for s in (1, 1, 2))
    flat = [[np.concatenate([batch.ids for batch in epoch]).tolist() for epoch in run] for run in (a, b, c)]
    assert flat[0] == flat[1] != flat[2] and flat[0][0] != flat[0][1] != list(range(64))
