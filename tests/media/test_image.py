"""Every picture becomes upright RGB by one rule, or is rejected with the right reason."""

from __future__ import annotations

import io
import struct
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tars import Source

from mmstream.errors import Reason, Rejected
from mmstream.media.filters import Filters
from mmstream.media.image import FORMATS, clean, collate, decode, resize, sniff, transform
from mmstream.shards.tar import members

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixel(data: bytes, y: int = 0, x: int = 0) -> tuple[int, ...]:
    return tuple(decode(data).rgb[y, x].tolist())


def outcome(data: bytes, **options: int) -> str:
    try:
        picture = decode(data, **options)
    except Rejected as rejected:
        assert rejected.detail
        return rejected.reason
    assert picture.rgb.shape == (picture.height, picture.width, 3)
    assert picture.rgb.dtype == np.uint8 and picture.rgb.flags.c_contiguous and picture.data is data
    return "embeds"


def table(shared: Path) -> dict[str, list[str]]:
    lines = (shared / "data" / "bad_inputs" / "EXPECTED.tsv").read_text().splitlines()[1:]
    pairs = (line.split("\t") for line in lines)
    return {name: expected.split("|") for name, expected in pairs if name.startswith("images/")}


def test_every_picture_of_other_projects_ends_as_its_table_says(shared: Path) -> None:
    found, slow = {}, []
    for name in table(shared):
        start = time.monotonic()
        found[name] = outcome((shared / "data" / "bad_inputs" / name).read_bytes())
        if time.monotonic() - start > 10:
            slow.append(name)
    assert len(found) == 54 and not slow
    assert {n: r for n, r in found.items() if r not in table(shared)[n]} == {}


def test_real_jpegs_have_the_pixels_that_pillow_gives(shared: Path) -> None:
    shard = Source((shared / "data" / "pairs" / "00000.tar").read_bytes())
    raw = [m.data for m in members(shard) if m.data and m.name.endswith(".jpg")]
    assert len(raw) > 100
    for data in raw:
        assert np.array_equal(decode(data).rgb, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 100),
    st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    st.booleans(),
    st.sampled_from(["RGB", "L", "CMYK"]),
)
def test_any_jpeg_has_the_pixels_that_pillow_gives(
    height: int, width: int, quality: int, subsampling: str, progressive: bool, mode: str
) -> None:
    image = Image.fromarray(noise(height, width)).convert(mode)
    data = encoded(image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    assert np.array_equal(decode(data).rgb, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "JPEG"])
def test_every_format_that_is_read_gives_its_pixels(format: str) -> None:
    pixels = noise(9, 7) // 64 * 64 if format == "GIF" else noise(9, 7)
    data = encoded(Image.fromarray(pixels), format, **({"lossless": True} if format == "WEBP" else {}))
    assert sniff(data) == format
    assert np.array_equal(decode(data).rgb, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_set_upright_by_its_orientation(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise(24, 40)), format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    picture = decode(data)
    assert (picture.height, picture.width) == ((40, 24) if orientation > 4 else (24, 40))
    assert np.array_equal(picture.rgb, np.asarray(upright))


def test_metadata_that_cannot_be_read_costs_nothing() -> None:
    image = Image.fromarray(noise(8, 8))
    for exif in (b"Exif\0\0no directory at all", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9):
        for format in ("JPEG", "PNG", "WEBP"):
            assert outcome(encoded(image, format, exif=exif)) == "embeds"


def test_seven_real_photographs_of_one_scene_come_out_alike(shared: Path) -> None:
    folder = shared / "data" / "bad_inputs" / "images"
    upright = [decode(p.read_bytes()).rgb.astype(int) for p in sorted(folder.glob("orientation__hopper_*"))]
    assert len(upright) == 7
    assert all(np.abs(u - upright[0]).mean() < 12 for u in upright)


def test_transparency_is_laid_over_white() -> None:
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 255))
    for format in ("PNG", "WEBP", "TIFF"):
        data = encoded(half, format, **({"lossless": True} if format == "WEBP" else {}))
        assert (pixel(data), pixel(data, 0, 1)) == (WHITE, RED)
    assert pixel(encoded(Image.new("LA", (1, 1), (0, 128)), "PNG"))[0] in (127, 128)
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([0, 0, 9])
    assert pixel(encoded(palette, "PNG", transparency=0)) == WHITE
    assert pixel(encoded(palette, "PNG")) == (0, 0, 9)
    assert pixel(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))) == WHITE


def test_grey_of_more_than_eight_bits_keeps_its_upper_ones() -> None:
    values = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    for format in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(values), format)
        assert decode(data).rgb[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    clear = encoded(Image.fromarray(values), "PNG", transparency=0x8000)
    assert decode(clear).rgb[0, :, 0].tolist() == [0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    "values", [np.array([[-2.0, 0.0, np.nan, 2.0]], np.float32), np.array([[0, 5, 5, 10]], np.int32)]
)
def test_values_that_name_no_white_are_stretched(values: np.ndarray) -> None:
    assert decode(encoded(Image.fromarray(values), "TIFF")).rgb[0, :, 0].tolist() == [0, 128, 128, 255]


def test_values_that_are_all_the_same_are_black() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert pixel(encoded(Image.fromarray(np.full((1, 1), 7.5, np.float32)), "TIFF")) == (0, 0, 0)


def test_one_bit_and_cmyk_become_rgb() -> None:
    assert pixel(encoded(Image.new("1", (3, 3), 1), "PNG")) == WHITE
    assert pixel(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "TIFF")) == WHITE
    red, green, blue = pixel(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red > 250 and green < 5 and blue < 5


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in (RED, WHITE)]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(
            frames[0],
            format,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if format == "WEBP" else {}),
        )
        assert pixel(data) == RED


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.NOT_IMAGE),
        (b"<html><body>404 not found</body></html>", Reason.NOT_IMAGE),
        (b"a caption by mistake", Reason.NOT_IMAGE),
        (b"PNG\r\n\x1a\n without its first byte", Reason.NOT_IMAGE),
        (b"\0\0\1\0\1\0", Reason.FORMAT),
        (b"\0\0\0\x18ftypheic", Reason.FORMAT),
        (b"\0\0\0\x1cftypavif", Reason.FORMAT),
        (b"P6\n4 4\n255\n", Reason.FORMAT),
        (b"%PDF-1.7", Reason.FORMAT),
        (b"8BPS\0\1", Reason.FORMAT),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.FORMAT),
        (bytes(128) + b"DICM", Reason.FORMAT),
        (b"BM and no bitmap", Reason.IMAGE_BROKEN),
    ],
)
def test_what_it_is_instead_is_told_by_its_first_bytes(data: bytes, reason: Reason) -> None:
    assert outcome(data) == reason


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_cut_anywhere_is_rejected_or_whole(format: str) -> None:
    data = encoded(Image.fromarray(noise(40, 60)), format)
    whole = decode(data).rgb
    outcomes = []
    for length in range(16, len(data), 37):
        outcomes.append(outcome(data[:length]))
        assert outcomes[-1] != "embeds" or np.array_equal(decode(data[:length]).rgb, whole)
    assert {*outcomes} <= {"image_truncated", "image_broken", "embeds"}
    if format != "TIFF":  # which has its directory at the end: without it nothing is known
        assert outcomes[len(outcomes) // 2 :].count("image_truncated") >= len(outcomes) // 2 - 2


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_flipped_bits_end_in_pixels_or_in_a_reason(format: str, data: st.DataObject) -> None:
    raw = bytearray(encoded(Image.fromarray(noise(20, 30)), format))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position] ^= 1 << data.draw(st.integers(0, 7))
    allowed = {"embeds", "not_image", "format", "image_broken", "image_truncated", "too_many_pixels"}
    assert outcome(bytes(raw), max_pixels=1_000_000) in allowed


def png_of(width: int, height: int) -> bytes:
    """A valid header and next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 13_000, 14_000, 60_000])
def test_too_many_pixels_are_seen_before_the_decode(side: int) -> None:
    start = time.monotonic()
    assert outcome(png_of(side, side)) == "too_many_pixels"
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    "header",
    [
        b"VP8X\x0a\0\0\0" + bytes(4) + b"\xff\x3f\0" * 2,
        b"VP8L\x05\0\0\0\x2f" + (0x3FFF << 14 | 0x3FFF).to_bytes(4, "little") + bytes(9),
        b"VP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a" + b"\xff\x3f" * 2,
    ],
)
def test_a_webp_of_too_many_pixels_is_seen_before_its_canvas_is_made(header: bytes) -> None:
    data = b"RIFF" + len(header).to_bytes(4, "little") + b"WEBP" + header
    with pytest.raises(Rejected, match=r"WEBP of 16,38[34] × 16,38[34] pixels"):
        decode(data)


def test_a_tile_that_is_larger_than_any_picture_is_seen_before_the_decode() -> None:
    tags = [
        (256, 9),
        (257, 9),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 65520),
        (323, 65520),
        (324, 200),
        (325, 9),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4 + 100)
    with pytest.raises(Rejected, match="TIFF with a tile of 65,520 × 65,520 pixels"):
        decode(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "1", "F"])
def test_a_picture_that_is_converted_in_bands_is_the_picture(mode: str) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (1100, 1000, 4), np.uint8)
    image = Image.fromarray(rgba).convert("L" if mode == "F" else "RGB" if mode == "P" else "RGBA").convert(mode)
    data = encoded(image, "TIFF" if mode in ("CMYK", "F") else "PNG", **({"transparency": 3} if mode == "P" else {}))
    found = decode(data).rgb
    if mode == "F":
        values = np.asarray(image).astype(np.float64)
        grey = ((values - values.min()) * (255 / (values.max() - values.min()))).round().astype(np.uint8)
        expected = np.repeat(grey[:, :, None], 3, axis=2)
    else:
        whole = Image.open(io.BytesIO(data))
        if whole.has_transparency_data:
            whole = whole.convert("RGBA")
            whole = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
        expected = np.asarray(whole.convert("RGB"))
    assert np.array_equal(found, expected)


def test_pillows_own_limits_mean_the_same() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for side in (13_000, 14_000):  # beyond its warning, beyond its error
            assert outcome(png_of(side, side), max_pixels=1 << 40) == "too_many_pixels"


def test_the_pixel_limit_is_a_limit_and_not_a_margin() -> None:
    data = encoded(Image.fromarray(noise(10, 10)), "PNG")
    assert outcome(data, max_pixels=100) == "embeds"
    assert outcome(data, max_pixels=99) == "too_many_pixels"


def test_a_reason_reads_the_same_in_every_run(shared: Path) -> None:
    for name in table(shared):
        try:
            decode((shared / "data" / "bad_inputs" / name).read_bytes())
        except Rejected as rejected:
            assert "0x" not in rejected.detail


SHAPES = [(224, 224), (223, 225), (300, 200), (200, 300), (51, 60), (1, 1), (640, 81), (1000, 130)]


@pytest.mark.parametrize("shape", SHAPES)
def test_crops_are_the_bytes_that_transformers_gives_clip(shape: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    rgb = noise(*shape)
    theirs = processor(Image.fromarray(rgb), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.array_equal(resize(rgb, 224, crop=(224, 224)), theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_squares_are_the_bytes_that_transformers_gives_siglip(shape: tuple[int, int]) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(do_rescale=False, do_normalize=False)
    rgb = noise(*shape)
    theirs = processor(Image.fromarray(rgb), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.array_equal(resize(rgb, (224, 224)), theirs)


@pytest.mark.parametrize("crop", [(30, 60), (61, 33), (50, 50)])
def test_a_crop_larger_than_the_picture_is_filled_with_black_as_transformers_does(crop: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {"height": crop[0], "width": crop[1]}
    processor = CLIPImageProcessorPil(do_rescale=False, do_normalize=False, size={"shortest_edge": 31}, crop_size=size)
    rgb = noise(40, 50)
    theirs = processor(Image.fromarray(rgb), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.array_equal(resize(rgb, 31, crop=crop), theirs)


@pytest.mark.parametrize("shape", [(2, 40), (40, 2), (3, 900), (900, 3)])
def test_a_strip_is_its_crop_to_within_a_level(shape: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    rgb = noise(*shape)
    theirs = processor(Image.fromarray(rgb), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = resize(rgb, 224, crop=(224, 224))
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < 1


def test_a_picture_may_be_made_a_strip() -> None:
    rgb = noise(50, 40)
    assert np.array_equal(
        resize(rgb, (4, 400)), np.asarray(Image.fromarray(rgb).resize((400, 4), Image.Resampling.BICUBIC))
    )


def test_a_strip_of_millions_of_pixels_costs_no_more_than_its_crop() -> None:
    start = time.monotonic()
    for shape in ((1, 3_000_000, 3), (3_000_000, 1, 3)):
        assert resize(np.full(shape, 9, np.uint8), 224, crop=(224, 224)).tolist() == [[[9] * 3] * 224] * 224
    assert time.monotonic() - start < 5
    with pytest.raises(Rejected, match="too_many_pixels"):
        resize(np.zeros((1, 3_000_000, 3), np.uint8), 224)


def test_algorithms_are_pillows_and_an_unknown_one_is_refused() -> None:
    rgb = noise(50, 40)
    for name, filter_ in (("nearest", Image.Resampling.NEAREST), ("lanczos", Image.Resampling.LANCZOS)):
        assert np.array_equal(
            resize(rgb, (20, 30), algorithm=name), np.asarray(Image.fromarray(rgb).resize((30, 20), filter_))
        )
    with pytest.raises(KeyError):
        resize(rgb, 20, algorithm="cubist")


def test_a_picture_goes_through_the_four_steps():
    picture = decode(encoded(Image.fromarray(noise(40, 60)), "PNG"))
    assert clean(picture, Filters(min_side=40, max_aspect=2)) is picture
    with pytest.raises(Rejected, match="the shorter side is 40, wanted are at least 41") as e:
        clean(picture, Filters(min_side=41))
    assert e.value.reason == Reason.FILTERED
    small = transform(picture, 16, crop=(16, 16))
    assert np.array_equal(small, resize(picture.rgb, 16, crop=(16, 16)))
    batch = collate([small, small])
    assert batch.shape == (2, 16, 16, 3) and batch.dtype == np.uint8
