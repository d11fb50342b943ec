"""The device's way with pictures, on the CPU: the same pixels as Pillow's, and the CPU codec where it must be asked."""

from __future__ import annotations

import resource
import threading
import time
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from samples import photographs

from mmstream.bench.pictures import jpegs
from mmstream.encoders import device_pictures
from mmstream.encoders.device_pictures import (
    BatchDecoder,
    DevicePictures,
    by_size,
    nvimagecodec,
    plain_jpeg,
)
from mmstream.encoders.fused import fuse
from mmstream.encoders.pictures import PictureModel, Recorded, rows_that_fit
from mmstream.encoders.preprocessing import Preprocessing
from mmstream.encoders.resample import canvas_of, normalized, on_canvas
from mmstream.errors import UsageError
from mmstream.media.image import decode

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
    assert all(map(plain_jpeg, [plain, saved("L"), saved("RGB", progressive=True), saved("RGB", subsampling=0)]))
    turned, cmyk, cut = with_exif(plain, 6), saved("CMYK"), plain[:-40]
    not_jpeg = [photographs()[1], b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\xff\xd8" + b"\xff" * 100 + b"\xff\xd9"]
    assert not any(map(plain_jpeg, [turned, cmyk, cut, saved("RGB", keep_rgb=True), *not_jpeg]))
    assert not any(plain_jpeg(plain[:n]) for n in range(len(plain)))


class Turbo:
    """A batch decoder of the CPU in place of the device's, which refuses what it is told to."""

    def __init__(self, broken: bytes = b"") -> None:
        self.broken, self.batches = broken, []

    def __call__(self, pictures: list[bytes], shapes: list[tuple[int, int]]) -> list[torch.Tensor | None]:
        assert shapes == [decode(data).rgb.shape[:2] for data in pictures]
        self.batches.append(len(pictures))
        return [None if data == self.broken else tensor_of(data) for data in pictures]


def tensor_of(data: bytes) -> torch.Tensor:
    return torch.from_numpy(decode(data).rgb.copy()).permute(2, 0, 1)


def fitted(device: DevicePictures, pictures: list[bytes]) -> torch.Tensor:
    ahead = device.decode(pictures)
    return device.fitted([device.taken(p or decode(data)) for p, data in zip(ahead, pictures, strict=True)])


def test_plain_jpegs_take_the_devices_decoder_in_one_batch_and_the_others_the_cpus() -> None:
    turbo, preprocessing = Turbo(), wanted()
    pictures = [*jpegs(3, 80), with_exif(jpegs(1, 48)[0], 6), *photographs()]
    device = DevicePictures(preprocessing, CPU, decoder=turbo)
    ahead = device.decode(pictures)
    plain = [plain_jpeg(data) is not None for data in pictures]
    assert [p is not None for p in ahead] == plain
    assert 3 <= sum(plain) < len(pictures) - 1
    assert turbo.batches == [sum(plain)]
    for data, found in zip(pictures, ahead, strict=True):
        as_decoded = decode(data)
        if found is not None:  # what is asked of a `Picture`
            assert (found.width, found.height, found.data) == (as_decoded.width, as_decoded.height, data)
            assert np.array_equal(found.rgb, as_decoded.rgb)
    pixels = np.stack([preprocessing.pixels(decode(data)) for data in pictures])
    reference = preprocessing.normalized(torch.from_numpy(pixels))
    std = torch.tensor(preprocessing.std).reshape(1, 3, 1, 1)
    assert ((fitted(device, pictures) - reference).abs() * std).mean() <= 1e-4


def test_what_the_device_gives_up_is_left_to_the_cpus_codec() -> None:
    good = jpegs(2, 64)
    device = DevicePictures(wanted(), CPU, decoder=Turbo(broken=good[1]))
    assert [p is None for p in device.decode([*good, b"no picture"])] == [False, True, True]
    assert torch.equal(fitted(device, good), fitted(DevicePictures(wanted(), CPU, decoder=Turbo()), good))


def test_pictures_are_resized_at_once_or_together_with_the_same_result() -> None:
    """On a GPU small ones wait for their micro-batch as they are; on a CPU none does, nor does a large one."""
    pictures = [jpegs(1, size, seed=size)[0] for size in (80, 200, 64)]
    device = DevicePictures(wanted(), CPU, decoder=Turbo())
    raw = [p.pixels for p in device.decode(pictures) if p]
    at_once = [device.taken(p) for p in device.decode(pictures) if p]
    assert [t.dtype for t in (*raw, *at_once)] == [torch.uint8] * 3 + [torch.float32] * 3
    assert torch.allclose(device.fitted(raw), device.fitted(at_once), atol=0.02)  # a digit of 255, at most
    assert torch.allclose(device.fitted([raw[0], at_once[1], raw[2]]), device.fitted(raw), atol=0.02)


def test_a_strip_takes_little_memory_and_the_resize_of_pillow() -> None:
    out = BytesIO()
    Image.new("RGB", (1, 400_000), "red").save(out, "PNG")
    picture, device = decode(out.getvalue()), DevicePictures(wanted(), CPU)
    before = peak_bytes()
    taken = device.taken(picture)
    assert peak_bytes() - before < 64 << 20  # the weights alone would be 200 MiB, and as much again and again
    assert torch.equal(taken, wanted().normalized(torch.tensor(wanted().pixels(picture))[None])[0])
    Image.new("RGB", (9000, 1)).save(out := BytesIO(), "JPEG")
    assert plain_jpeg(out.getvalue()) is None


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_a_group_is_decoded_in_parts_of_few_bytes_and_without_memory_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pictures, turbo = jpegs(5, 64), Turbo()
    monkeypatch.setattr(device_pictures, "_MOST_BYTES", 2 * 3 * 64 * 64)
    device = DevicePictures(wanted(), CPU, decoder=turbo)
    assert all(device.decode(pictures)) and turbo.batches == [2, 2, 1]

    def without_memory(_: list[bytes], __: list[tuple[int, int]]) -> list[torch.Tensor | None]:
        raise torch.OutOfMemoryError("none is left")

    assert DevicePictures(wanted(), CPU, decoder=without_memory).decode(pictures) == [None] * 5


def test_what_stands_behind_the_size_is_seen_too() -> None:
    plain = jpegs(1, 48)[0]
    turned = with_exif(plain, 6)

    def end_of_segment(marker: bytes, data: bytes) -> int:
        return (at := data.index(marker)) + 2 + int.from_bytes(data[at + 2 : at + 4], "big")

    start, end = turned.index(b"\xff\xe1"), end_of_segment(b"\xff\xe1", turned)
    exif, rest = turned[start:end], turned[:start] + turned[end:]
    behind = end_of_segment(b"\xff\xc0", rest)
    moved = rest[:behind] + exif + rest[behind:]
    assert Image.open(BytesIO(moved)).getexif()[0x0112] == 6
    assert plain_jpeg(plain) and plain_jpeg(turned) is None and plain_jpeg(moved) is None


@pytest.fixture(scope="module")
def codec() -> BatchDecoder:
    """nvImageCodec itself, by its libjpeg-turbo."""
    found = nvimagecodec(CPU)
    if found is None:
        pytest.skip("nvImageCodec is not installed: pip install 'mmstream[test]'")
    return found


def shapes_of(pictures: list[bytes]) -> list[tuple[int, int]]:
    return [plain_jpeg(data) or (8, 8) for data in pictures]


def test_nvimagecodec_shows_a_jpeg_as_the_cpus_codec_does_and_gives_none_for_what_it_cannot_read(
    codec: BatchDecoder,
) -> None:
    plain = jpegs(3, 80)
    good = [*plain, saved("L"), saved("RGB", progressive=True), saved("RGB", subsampling=0)]
    bad = [b"no picture", b"", b"\xff\xd8", plain[0][:300] + b"\xff\xd9"]
    pictures = [bad[0], *good, *bad[1:]]
    for _ in range(3):  # its handles are used again
        found = codec(pictures, shapes_of(pictures))
        for data, pixels in zip(pictures, found, strict=True):
            assert (pixels is None) == (data in bad)
            assert pixels is None or torch.equal(pixels, tensor_of(data))


def test_nvimagecodec_does_not_write_a_picture_to_memory_of_another_size(codec: BatchDecoder) -> None:
    first, second = jpegs(2, 64)
    found = codec([first, second], [(32, 32), (64, 64)])
    assert found[0] is None
    assert found[1] is not None and torch.equal(found[1], tensor_of(second))


def test_nvimagecodec_decodes_while_other_threads_are_at_work(codec: BatchDecoder) -> None:
    """Its own Python package asks for the interpreter so often that 64 pictures took 1.6 s beside a busy thread."""
    pictures, over = jpegs(64, 64), threading.Event()

    def count() -> None:
        while not over.is_set():
            pass

    thread = threading.Thread(target=count)
    codec(pictures, shapes_of(pictures))
    thread.start()
    try:
        start = time.perf_counter()
        codec(pictures, shapes_of(pictures))
        took = time.perf_counter() - start
    finally:
        over.set()
        thread.join()
    assert took < 0.5


def test_pictures_of_nvimagecodec_become_what_the_model_takes(codec: BatchDecoder) -> None:
    preprocessing, pictures = wanted(), [*jpegs(3, 80), saved("L"), *photographs()]
    device = DevicePictures(preprocessing, CPU, decoder=codec)
    assert torch.equal(fitted(device, pictures), fitted(DevicePictures(preprocessing, CPU, decoder=Turbo()), pictures))
    assert device.decoded_by == "nvimagecodec"


def test_pictures_stay_as_they_are_when_the_codec_takes_its_memory_again(codec: BatchDecoder) -> None:
    first = codec(jpegs(4, 64), [(64, 64)] * 4)
    kept = [None if p is None else p.clone() for p in first]
    for pictures in (jpegs(4, 64, seed=9), [*jpegs(2, 80), b"no picture", jpegs(1, 48)[0]], jpegs(3, 64), jpegs(6, 40)):
        for data, pixels in zip(pictures, codec(pictures, shapes_of(pictures)), strict=True):
            assert (pixels is None) == (data == b"no picture")
            assert pixels is None or torch.equal(pixels, tensor_of(data))
    for a, b in zip(first, kept, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


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
    at_once = fitted(device, pictures)
    monkeypatch.setattr(device_pictures, "_CANVAS_PIXELS", 1 << 16)
    assert torch.equal(fitted(device, pictures), at_once)
    assert len(by_size([(300, 300), (80, 80), (200, 200), (81, 81)], 1 << 16)) == 3


def test_an_algorithm_that_is_not_done_there_is_refused() -> None:
    with pytest.raises(UsageError, match="hamming is not resampled on the device"):
        DevicePictures(wanted(algorithm="hamming"), CPU)


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
    images = fitted(device, pictures).cpu()
    reference = encoder.preprocessing.normalized(
        torch.from_numpy(np.stack([encoder.preprocess(decode(data)) for data in pictures]))
    )
    std = torch.tensor(encoder.preprocessing.std).reshape(1, 3, 1, 1)
    assert ((images - reference).abs() * std).mean((1, 2, 3)).max() <= 1 / 255
    with torch.inference_mode():
        exact = encoder._features(reference.to(encoder.on, torch.bfloat16)).float().cpu().numpy()
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert np.einsum("nd,nd->n", encoder.encode_image(pictures), exact).min() >= 0.999
    assert isinstance(encoder._recorded, Recorded)  # a graph, whose vectors are those without it
    assert np.array_equal(encoder.encode_image(pictures), without_a_graph(encoder, pictures))
    fuse(encoder)
    ahead = encoder.decode_ahead(pictures)
    rows = [encoder.preprocess(p or decode(data)) for p, data in zip(ahead, pictures, strict=True)]
    assert sum(p is not None for p in ahead) >= 28
    assert np.einsum("nd,nd->n", encoder.embed_pixels(rows), exact).min() >= 0.999


def without_a_graph(encoder: PictureModel, pictures: list[bytes]) -> np.ndarray:
    encoder._records = False
    try:
        return encoder.encode_image(pictures)
    finally:
        encoder._records = True
