"""`fused:<spec of an encoder of pictures>`: that encoder, whose device decodes, resizes and normalises its pictures.

On a GPU with nvImageCodec a process decodes many times as many JPEGs as its cores would. The resize is another one than
Pillow's (`encoders.resample`: the same filter, within a few of 255), so the fingerprint is another one, too; on a CPU
it is done as well, so that what a GPU embedded is searched and continued anywhere. Which codec decoded is not in it: a
chunk that is done again on a CPU, or in a sandbox, may differ in the last digits of a vector.
"""

from __future__ import annotations

from collections.abc import Callable

from mmstream.encoders.base import Encoder, fingerprint
from mmstream.encoders.device_pictures import GROUP, RESIZE, DevicePictures
from mmstream.encoders.pictures import PictureModel
from mmstream.encoders.preprocessing import Preprocessing
from mmstream.errors import UsageError


def with_device_pictures(spec: str, load: Callable[[str], Encoder]) -> Encoder:
    """
    Args:
        load: how the encoder of pictures is made of its own spec.

    Raises:
        UsageError: the encoder takes no pictures, or they cannot be resized on a device.
    """
    inner = spec.removeprefix("fused:")
    encoder = load(inner)
    if not isinstance(encoder, PictureModel) or not isinstance(encoder.preprocessing, Preprocessing):
        raise UsageError(f"{spec}: {inner} does not take its pictures from a device. Give it without fused:.")
    return fuse(encoder)


def fuse(encoder: PictureModel) -> PictureModel:
    """The same encoder, by the other way.

    Raises:
        UsageError: its pictures cannot be resized on a device.
    """
    encoder.fused = DevicePictures(encoder.preprocessing, encoder.on)
    encoder.group = GROUP if encoder.fused.decoded_by != "turbo" else 1
    encoder.spec = f"fused:{encoder.spec}"
    encoder.fingerprint = fingerprint({"encoder": encoder.fingerprint, "pictures": RESIZE})
    return encoder
