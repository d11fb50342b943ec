"""Preparing and the model overlap, and nothing of it shows in the vectors."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from samples import photographs
from small_models import save_clip

from mmstream.encoders.base import Encoder
from mmstream.encoders.build import load_encoder
from mmstream.encoders.fake import FakeEncoder
from mmstream.encoders.pipelined import picture_vectors, prepared
from mmstream.media.image import decode
from mmstream.timing import Stopwatch


def streamed(encoder: Encoder, pictures: list[bytes], threads: int, ahead: int) -> np.ndarray:
    with ThreadPoolExecutor(threads) as pool:
        pixels = prepared(pictures, lambda data: encoder.preprocess(decode(data)), pool, ahead)
        return np.concatenate(list(picture_vectors(pixels, encoder, Stopwatch())))


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (2, 3), (4, 100)])
def test_the_vectors_are_those_of_the_slow_way_to_the_last_bit(tmp_path: Path, threads: int, ahead: int) -> None:
    encoder = load_encoder(f"hf:{save_clip(tmp_path)}")
    encoder.micro_batch = 4
    pictures = photographs() * 3  # 15: the last micro-batch is padded
    assert streamed(encoder, pictures, threads, ahead).tobytes() == encoder.encode_image(pictures).tobytes()


def test_results_come_in_order_and_few_are_held() -> None:
    begun, taken, most = 0, 0, 0
    lock = threading.Lock()

    def prepare(i: int) -> int:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        time.sleep(0.002 * (i % 5 == 0))
        return i

    found = []
    with ThreadPoolExecutor(4) as pool:
        for result in prepared(range(100), prepare, pool, ahead=7):
            with lock:
                taken += 1
            found.append(result)
    assert found == list(range(100))
    assert most <= 8  # one is handed over as the next is begun


def test_the_next_pictures_are_prepared_while_the_model_is_at_work() -> None:
    later = threading.Event()

    class Slow(FakeEncoder):
        micro_batch = 2

        def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
            assert later.wait(10), "picture 4 was not prepared before the first two were encoded"
            return pixels

    def prepare(i: int) -> np.ndarray:
        if i == 4:
            later.set()
        return np.ones(3, np.float32)

    with ThreadPoolExecutor(1) as pool:
        vectors = list(picture_vectors(prepared(range(6), prepare, pool, ahead=4), Slow("fake:3"), Stopwatch()))
    assert [len(v) for v in vectors] == [2, 2, 2]


def test_an_error_of_one_comes_out_and_what_was_not_begun_never_is() -> None:
    begun = []

    def prepare(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise ValueError("the third")
        return i

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="the third"):
        list(prepared(range(100), prepare, pool, ahead=2))
    assert max(begun) < 10


def test_no_pictures_give_no_vectors() -> None:
    assert list(picture_vectors([], FakeEncoder("fake:3"), Stopwatch())) == []
