"""The device's way with pictures, on the CPU: the same pixels as Pillow's, and the CPU codec where it must be asked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import photographs
from small_models import save_clip

from mmstream.bench.pictures import jpegs
from mmstream.encoders import device_pictures
from mmstream.encoders.build import load_encoder
from mmstream.encoders.device_pictures import (
    BatchDecoder,
    DevicePictures,
    by_size,
    device_vectors,
    is_plain_jpeg,
    nvimagecodec,
)
from mmstream.encoders.pictures import rows_that_fit
from mmstream.encoders.preprocessing import Preprocessing
from mmstream.encoders.resample import canvas_of, normalized, on_canvas
from mmstream.errors import Reason, Rejected, UsageError
from mmstream.media.image import decode
from mmstream.timing import Stopwatch

CPU = torch.device("cpu")
ZERO, ONE = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)


def wanted(size=64, crop=(64, 64), algorithm="bicubic", centre="floor") -> Preprocessing:
    return Preprocessing(size, crop, algorithm, 1 / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), centre=centre)


@pytest.mark.parametrize("algorithm", ["bicubic", "bilinear", "lanczos", "box"])
@pytest.mark.parametrize(
    ("size", "crop", "centre"),
    [
        (64, (64, 64), "floor"),
        (73, (64, 64), "even"),  # odd margins
        (50, (64, 64), "floor"),  # smaller than the crop: black around it
        (200, (64, 64), "floor"),  # enlarged
        ((48, 80), None, "floor"),  # another shape
    ],
)
def test_two_matrix_products_resize_as_pillow_does(algorithm: str, size, crop, centre: str) -> None:
    preprocessing = wanted(size, crop, algorithm, centre)
    pictures = [decode(data) for data in photographs()]
    tensors = [torch.from_numpy(p.rgb.copy()).permute(2, 0, 1) for p in pictures]
    found = normalized(*on_canvas(tensors, preprocessing), 1.0, ZERO, ONE).permute(0, 2, 3, 1).numpy()
    pillow = np.stack([preprocessing.pixels(p) for p in pictures]).astype(float)
    assert found.shape == pillow.shape
    error = np.abs(found - pillow)
    assert error.mean() <= (0.2 if isinstance(size, tuple) else 0.05)  # of 255; the bound of parity is 1
    assert error.max() <= (
        16 if isinstance(size, tuple) else 2
    )  # where Pillow takes the passes in another order, and rounds in between


def test_the_step_on_the_device_is_one_graph() -> None:
    preprocessing = wanted()
    tensors = [torch.from_numpy(decode(data).rgb.copy()).permute(2, 0, 1) for data in photographs()]
    compiled = torch.compile(normalized, fullgraph=True, backend="aot_eager")
    arguments = (*on_canvas(tensors, preprocessing), 1.0, ZERO, ONE)
    assert torch.equal(compiled(*arguments), normalized(*arguments))


def with_exif(data: bytes, orientation: int) -> bytes:
    exif, out = Image.Exif(), BytesIO()
    exif[0x0112] = orientation
    Image.open(BytesIO(data)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def saved(mode: str, **options) -> bytes:
    out = BytesIO()
    Image.open(BytesIO(jpegs(1, 48)[0])).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def test_only_jpegs_that_every_decoder_shows_alike_are_plain() -> None:
    plain = jpegs(1, 48)[0]
    assert all(map(is_plain_jpeg, [plain, saved("L"), saved("RGB", progressive=True), saved("RGB", subsampling=0)]))
    turned, cmyk, cut = with_exif(plain, 6), saved("CMYK"), plain[:-40]
    not_jpeg = [photographs()[1], b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\xff\xd8" + b"\xff" * 100 + b"\xff\xd9"]
    assert not any(map(is_plain_jpeg, [turned, cmyk, cut, saved("RGB", keep_rgb=True), *not_jpeg]))
    assert not any(is_plain_jpeg(plain[:n]) for n in range(len(plain)))


class Turbo:
    """A batch decoder of the CPU in place of the device's, which refuses what it is told to."""

    def __init__(self, broken: bytes = b"") -> None:
        self.broken, self.batches = broken, []

    def __call__(self, pictures: list[bytes]) -> list[torch.Tensor | None]:
        self.batches.append(len(pictures))
        return [None if data == self.broken else tensor_of(data) for data in pictures]


def tensor_of(data: bytes) -> torch.Tensor:
    return torch.from_numpy(decode(data).rgb.copy()).permute(2, 0, 1)


def test_plain_jpegs_take_the_devices_decoder_in_one_batch_and_the_others_the_cpus() -> None:
    turbo, preprocessing = Turbo(), wanted()
    pictures = [*jpegs(3, 80), with_exif(jpegs(1, 48)[0], 6), *photographs()]
    device = DevicePictures(preprocessing, CPU, decoder=turbo)
    images = device(pictures)
    plain = sum(map(is_plain_jpeg, pictures))
    assert 3 <= plain < len(pictures) - 1
    assert turbo.batches == [plain]
    assert (device.num_on_device, device.num_on_cpu) == (plain, len(pictures) - plain)
    pixels = np.stack([preprocessing.pixels(decode(data)) for data in pictures])
    reference = preprocessing.normalized(torch.from_numpy(pixels))
    assert ((images - reference).abs() * torch.tensor(preprocessing.std).reshape(1, 3, 1, 1)).mean() <= 1e-4


def test_what_the_device_gives_up_takes_the_cpus_codec_and_what_is_broken_says_why() -> None:
    good = jpegs(2, 64)
    device = DevicePictures(wanted(), CPU, decoder=Turbo(broken=good[1]))
    assert torch.equal(device(good), DevicePictures(wanted(), CPU, decoder=Turbo())(good))
    assert (device.num_on_device, device.num_on_cpu) == (1, 1)
    with pytest.raises(Rejected) as rejected:
        device([good[0], b"no picture"])
    assert rejected.value.reason == Reason.NOT_IMAGE


@pytest.fixture(scope="module")
def codec() -> BatchDecoder:
    """nvImageCodec itself, by its libjpeg-turbo."""
    found = nvimagecodec(CPU)
    if found is None:
        pytest.skip("nvImageCodec is not installed: pip install 'mmstream[test]'")
    return found


def test_nvimagecodec_shows_a_jpeg_as_the_cpus_codec_does_and_gives_none_for_what_it_cannot_read(
    codec: BatchDecoder,
) -> None:
    pictures = [*jpegs(3, 80), saved("L"), saved("RGB", progressive=True), saved("RGB", subsampling=0)]
    found = codec([*pictures, b"no picture"])
    assert found.pop() is None
    for data, pixels in zip(pictures, found, strict=True):
        assert pixels is not None and torch.equal(pixels.expand(3, -1, -1), tensor_of(data))


def test_pictures_of_nvimagecodec_become_what_the_model_takes(codec: BatchDecoder) -> None:
    preprocessing, pictures = wanted(), [*jpegs(3, 80), saved("L"), *photographs()]
    device = DevicePictures(preprocessing, CPU, decoder=codec)
    assert torch.equal(device(pictures), DevicePictures(preprocessing, CPU, decoder=Turbo())(pictures))
    assert device.num_on_device == sum(map(is_plain_jpeg, pictures)) >= 4


def test_a_large_picture_does_not_make_the_canvas_of_small_ones_large() -> None:
    assert by_size([(64, 64)] * 4, 1 << 20) == [[0, 1, 2, 3]]
    assert by_size([(60, 60), (900, 20), (64, 64), (2000, 2000), (30, 30)], 3 * 64 * 64) == [[0, 2, 4], [1], [3]]
    shapes = [(37 * i % 900 + 1, 53 * i % 700 + 1) for i in range(200)]
    groups = by_size(shapes, 1 << 20)
    assert sorted(i for group in groups for i in group) == list(range(200))
    for group in groups:
        height, width = canvas_of(max(shapes[i][0] for i in group), max(shapes[i][1] for i in group))
        assert len(group) == 1 or len(group) * height * width <= 1 << 20


def test_groups_come_back_in_the_order_of_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [jpegs(1, size, seed=size)[0] for size in (300, 80, 200, 81)]
    device = DevicePictures(wanted(), CPU, decoder=Turbo())
    at_once = device(pictures)
    monkeypatch.setattr(device_pictures, "_CANVAS_PIXELS", 1 << 16)
    assert torch.equal(device(pictures), at_once)
    assert len(by_size([(300, 300), (80, 80), (200, 200), (81, 81)], 1 << 16)) == 3


def test_the_backend_is_another_part_of_a_fingerprint() -> None:
    preprocessing = wanted()
    backends = {
        preprocessing.identity()["backend"],
        DevicePictures(preprocessing, CPU).preprocessing.identity()["backend"],
        DevicePictures(preprocessing, CPU, decoder=Turbo()).preprocessing.identity()["backend"],
    }
    assert len(backends) == 3


def test_an_algorithm_that_is_not_done_there_is_refused() -> None:
    with pytest.raises(UsageError, match="hamming is not resampled on the device"):
        DevicePictures(wanted(algorithm="hamming"), CPU)


def test_the_vectors_are_those_of_the_cpus_way(tmp_path: Path) -> None:
    encoder = load_encoder(f"hf:{save_clip(tmp_path)}")
    pictures = photographs() * 2
    device = DevicePictures(encoder.preprocessing, CPU, decoder=Turbo())
    batches = [pictures[i : i + 4] for i in range(0, len(pictures), 4)]
    with ThreadPoolExecutor(2) as pool:
        vectors = np.concatenate(list(device_vectors(batches, encoder, device, pool, Stopwatch())))
    assert np.einsum("nd,nd->n", vectors, encoder.encode_image(pictures)).min() >= 0.9999


def test_a_micro_batch_is_halved_until_it_takes_an_eighth_of_the_device() -> None:
    assert rows_that_fit(1 << 20, 80 << 30) == 256
    assert rows_that_fit(200 << 20, 80 << 30) == 32
    assert rows_that_fit(1 << 40, 1 << 30) == 1


@pytest.mark.gpu
def test_a_gpus_pixels_are_within_the_bound_of_parity_and_its_vectors_near() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    from mmstream.bench.random_weights import RandomPictures

    encoder = RandomPictures("ViT-B/32")
    encoder.choose_micro_batch()
    assert encoder.dtype == "bfloat16"
    pictures = [*jpegs(28, 256), *photographs()[:4]]
    device = DevicePictures(encoder.preprocessing, encoder.on, compiled=True)
    images = device(pictures).cpu()
    reference = encoder.preprocessing.normalized(
        torch.from_numpy(np.stack([encoder.preprocess(decode(data)) for data in pictures]))
    )
    std = torch.tensor(encoder.preprocessing.std).reshape(1, 3, 1, 1)
    assert ((images - reference).abs() * std).mean((1, 2, 3)).max() <= 1 / 255
    with torch.inference_mode():
        exact = encoder._features(reference.to(encoder.on)).float().cpu().numpy()
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert np.einsum("nd,nd->n", encoder.encode_image(pictures), exact).min() >= 0.999
    with ThreadPoolExecutor(2) as pool:
        batches = [pictures[i : i + 8] for i in range(0, 32, 8)]
        vectors = np.concatenate(list(device_vectors(batches, encoder, device, pool, Stopwatch())))
    assert np.einsum("nd,nd->n", vectors, exact).min() >= 0.999
