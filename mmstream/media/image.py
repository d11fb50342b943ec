"""Encoded pictures become pixels: decode (bytes → upright RGB) → clean → transform (→ a tower's size) → collate.

Read are JPEG (MPO's first picture too), PNG, WebP, GIF, BMP and TIFF, the first frame of each. What anything else is
gets said by its first bytes. The format and the number of pixels are known before anything is decoded, and whatever a
picture is, less than 17 bytes per pixel are held at once. One rule for all pictures: EXIF or XMP orientation applied;
transparency laid over white; palettes, CMYK and grey made RGB; 16 bits cut to the upper 8, and 32-bit integers and
floats, which name no white, stretched from their own minimum to their own maximum; colour profiles ignored.

Pillow decodes; for plain JPEG simplejpeg does, with the same pixels (both are libjpeg-turbo) in three quarters of the
time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import (  # the plugins register themselves; Pillow's own search for them would load forty more
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from mmstream.errors import Reason, Rejected

try:
    import simplejpeg
except ImportError:  # a lone GPU machine that only measures: Pillow gives the same pixels in more time
    simplejpeg = None

if TYPE_CHECKING:  # the sandbox's child loads this module and needs no configs
    from mmstream.media.filters import Filters

MAX_PIXELS = 50_000_000
_BAND_PIXELS = 1 << 20  # converted at a time
_WHOLE_PIXELS = 1 << 24  # what is resized as a whole before it is cropped; of a longer strip just the crop is
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ALGORITHMS: dict[str, Image.Resampling] = {f.name.lower(): f for f in Image.Resampling}

# Pillow warns of odd metadata and of large pictures. The pixel limit here is lower than Pillow's, odd metadata decides
# nothing, and `warnings.catch_warnings` is not safe in threads: silence once for the process.
warnings.filterwarnings("ignore", module=r"PIL\.")

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\2\0", "CUR"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "PSD"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"<svg", "SVG"),
    (b"icns", "ICNS"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"SIMPLE  =", "FITS"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"\x8aMNG", "MNG"),
)
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_TRANSPOSED = {  # EXIF orientation → how to set the picture upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True, eq=False)
class Picture:
    """`rgb` is uint8 [height, width, 3], upright and contiguous; `data` is what it was decoded from."""

    rgb: np.ndarray
    width: int
    height: int
    data: bytes


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in `data`, by the rule above.

    Raises:
        Rejected: `not_image`, `format` (a picture, but of no format that is read), `too_many_pixels` (judged from the
            header), `image_truncated`, `image_broken`, or `decoder_crash` where the decoder wants more memory than
            there is.
    """
    found = sniff(data)
    if found is None:
        raise Rejected(Reason.NOT_IMAGE, f"{len(data):,} bytes that are no picture (they begin {data[:12]!r})")
    if found not in FORMATS:
        raise Rejected(Reason.FORMAT, f"{found} is not read; the formats are {', '.join(FORMATS)}")
    if found == "WEBP":  # whose decoder takes the memory for its canvas as it is opened
        _check_pixels(found, _webp_size(data), max_pixels)
    with _mapped(found, data), Image.open(BytesIO(data), formats=[found]) as image:
        _check_pixels(found, image.size, max_pixels)
        _check_pixels(f"{found} with a tile", _tile_size(image), max_pixels)
        rgb = _pixels(image, data)
        orientation = _orientation(image)  # afterwards: a TIFF is set upright, and says so, as it is loaded
        if rgb.size == 0:
            raise Rejected(Reason.IMAGE_BROKEN, f"{found} without pixels: {image.width} × {image.height}")
    upright = _TRANSPOSED[orientation](rgb) if orientation in _TRANSPOSED else rgb
    return Picture(np.ascontiguousarray(upright), upright.shape[1], upright.shape[0], data)


def _check_pixels(what: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        of = f"of {width:,} × {height:,} pixels"
        raise Rejected(Reason.TOO_MANY_PIXELS, f"{what} {of}, the limit is {max_pixels:,} in all")


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the canvas as the header has it; (0, 0) where it has none that can be read."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X" and len(body) == 10:
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L" and len(body) >= 5:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(body) == 10:
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return 0, 0


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the tiles of a TIFF, which may be larger than the picture and are decoded as a whole."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, 0
    width, height = image.tag_v2.get(322, 0), image.tag_v2.get(323, 0)
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)


def sniff(data: bytes) -> str | None:
    """The format that the first bytes claim, one of `FORMATS` or the name of another; None for what is no picture."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return "HEIF" if brand in HEIF_BRANDS else "AVIF" if brand in (b"avif", b"avis") else "ISO media"
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3] in b" \t\r\n" and len(data) > 3:
        return "PNM"
    if data[128:132] == b"DICM":
        return "DICOM"
    return None


def clean(picture: Picture, filters: Filters) -> Picture:
    """The picture as it is.

    Raises:
        Rejected: `filtered`, its size or shape is not wanted.
    """
    if why := filters.picture(picture.width, picture.height):
        raise Rejected(Reason.FILTERED, why)
    return picture


def transform(
    picture: Picture, size: int | tuple[int, int], *, algorithm: str = "bicubic", crop: tuple[int, int] | None = None
) -> np.ndarray:
    """uint8 [height, width, 3] by `resize`, which see."""
    return resize(picture.rgb, size, algorithm=algorithm, crop=crop)


def collate(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [H, W, 3] each, of one size → uint8 [n, H, W, 3]. Floats are made where the model is, not here."""
    return np.stack(pictures)


def resize(
    rgb: np.ndarray,
    size: int | tuple[int, int],
    *,
    algorithm: str = "bicubic",
    crop: tuple[int, int] | None = None,
    centre: str = "floor",
) -> np.ndarray:
    """`rgb`, uint8 [H, W, 3], resampled by Pillow to another uint8 array.

    `size` is the new (height, width), as SigLIP has it, or the new shortest edge, as CLIP has it, the other one
    truncated to whole pixels. `crop` is the (height, width) cut from the centre afterwards; where the picture is
    smaller than that, black fills the rest. An odd margin is halved downwards, as transformers does (`centre` is
    "floor"), or to the even side, as torchvision does, and with it timm and open_clip ("even"). The same bytes as
    their own processors give on Pillow, but for strips that would grow over 16 million pixels: there only what the crop
    shows is computed, or a long edge would grow to gigabytes.

    Raises:
        Rejected: `too_many_pixels`, where there is no crop and a strip would become larger than `MAX_PIXELS`.
    """
    height, width = rgb.shape[:2]
    new_height, new_width = shape_of(height, width, size)
    crop_height, crop_width = crop or (new_height, new_width)
    if crop_height * crop_width > MAX_PIXELS:
        what = f"{width:,} × {height:,} pixels would become {new_width:,} × {new_height:,}"
        raise Rejected(Reason.TOO_MANY_PIXELS, f"{what}, the limit is {MAX_PIXELS:,} in all")
    top, bottom, row = margins(new_height, crop_height, centre)
    left, right, column = margins(new_width, crop_width, centre)
    image, filter_ = Image.fromarray(rgb), ALGORITHMS[algorithm]
    if new_height * new_width <= _WHOLE_PIXELS:
        pixels = np.asarray(image.resize((new_width, new_height), filter_))[top:bottom, left:right]
    else:  # Pillow may take the passes in another order here and round in between: not the same bytes
        y, x = height / new_height, width / new_width
        box = (left * x, top * y, min(right * x, width), min(bottom * y, height))
        pixels = np.asarray(image.resize((right - left, bottom - top), filter_, box=box))
    if pixels.shape[:2] == (crop_height, crop_width):
        return np.ascontiguousarray(pixels)
    canvas = np.zeros((crop_height, crop_width, 3), np.uint8)
    canvas[row : row + pixels.shape[0], column : column + pixels.shape[1]] = pixels
    return canvas


def shape_of(height: int, width: int, size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) to which `resize` brings a picture before it crops."""
    if isinstance(size, tuple):
        return size
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def margins(length: int, crop: int, centre: str) -> tuple[int, int, int]:
    """(first, last + 1 of `length` pixels that a centred crop shows, how many black ones come before them)."""
    margin = max(0, length - crop)
    start = margin // 2 if centre == "floor" else round(margin / 2)
    return start, min(length, start + crop), max(0, (crop - length + 1) // 2)


@contextmanager
def _mapped(found: str, data: bytes) -> Generator[None]:
    """Pillow's decoders raise whatever comes up, SyntaxError and struct.error included: here is the edge."""
    try:
        yield
    except Rejected:
        raise
    except MemoryError as e:
        detail = f"{found} of {len(data):,} bytes: its decoder wants more memory than it may have"
        raise Rejected(Reason.DECODER_CRASH, detail) from e
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise Rejected(Reason.TOO_MANY_PIXELS, f"{found}: {e}") from e
    except UnidentifiedImageError as e:  # its own message holds an address in memory, other in every run
        reason = Reason.IMAGE_TRUNCATED if _is_cut_webp(found, data) else Reason.IMAGE_BROKEN
        raise Rejected(reason, f"{found} of {len(data):,} bytes: the header cannot be read") from e
    except Exception as e:
        is_cut = isinstance(e, EOFError) or "truncated" in str(e).lower() or _is_cut_webp(found, data)
        reason = Reason.IMAGE_TRUNCATED if is_cut else Reason.IMAGE_BROKEN
        raise Rejected(reason, f"{found} of {len(data):,} bytes: {type(e).__name__}: {str(e)[:200]}") from e


def _is_cut_webp(found: str, data: bytes) -> bool:
    """Pillow does not tell a WebP that was cut from a broken one; the length in its first bytes does."""
    return found == "WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little")


def _orientation(image: Image.Image) -> int:
    """EXIF's, or XMP's, orientation. Metadata that cannot be read says nothing about it: 1, upright."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # any error of a parser that met hostile bytes; the pixels are fine without it
        return 1


def _pixels(image: Image.Image, data: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of the first frame, as stored."""
    if simplejpeg and image.format == "JPEG" and image.mode in ("RGB", "L"):
        try:
            return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:  # strict where Pillow is lenient, or broken: Pillow decides, and knows why
            pass
    image.load()
    if image.width * image.height == 0:
        return np.zeros((0, 0, 3), np.uint8)
    convert = _grey(image) if image.mode[0] in "IF" else _colour
    if image.width * image.height <= _BAND_PIXELS:
        return convert(image)
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for top, band in _bands(image):
        rgb[top : top + band.height] = convert(band)
    return rgb


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, those rows) from the top down: what a conversion holds beside the picture is small."""
    height = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


def _colour(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of a picture of 8 bits, on white where it is transparent."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _grey(image: Image.Image) -> Callable[[Image.Image], np.ndarray]:
    """Gives bands of `image`, which has 16 or 32 bits, as uint8 [H, W, 3]."""
    if image.mode.startswith("I;16"):
        clear = image.info.get("transparency")
        return lambda band: _repeated(_upper_bits(np.asarray(band), clear))
    ends = [(known.min(), known.max()) for known in (_known(band) for _, band in _bands(image))]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    scale = 255 / (high - low) if high > low else 0.0
    return lambda band: _repeated(((_known(band) - low) * scale).round())


def _upper_bits(values: np.ndarray, clear: int | None) -> np.ndarray:
    return (values if clear is None else np.where(values == clear, 0xFFFF, values)) >> 8


def _known(band: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(band).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
