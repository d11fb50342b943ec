"""nvImageCodec by its C interface: many JPEGs at once into memory of ours, without the interpreter.

Its Python package asks for the interpreter about five times a picture, and a thread of Python at work gives it away
only when `sys.getswitchinterval()` is over: a group of 64 took 1.6 s in place of 4 ms beside a busy thread, and 10,000
pictures a second were decoded beside those that preprocess and feed the model, where 20,000 are alone. Here the two
calls that take time are made without the interpreter, and nothing is copied or allocated for a picture.

Structures are those of nvimgcodec.h 0.9: each begins with its type and size, which the library checks.
"""

from __future__ import annotations

import ctypes as c
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

VERSIONS = range(900, 1000)  # 0.9.x
CPU_THREADS = 4  # read headers and hand pictures over
_CPU_ONLY = -99999
_SUCCESS, _DECODED = 0, 1
_UINT8, _SRGB, _RGB = 0x0802, 1, 8
_ON_DEVICE, _ON_HOST = 1, 2
_CPU_BACKEND = 1
_ALIGNED = 256  # bytes: where a picture begins in memory
_Handle = c.c_void_p


def _structure(name: str, kind: int, *fields: tuple[str, Any]) -> type[c.Structure]:
    """A structure whose instances know their type and size."""

    def __init__(self: Any, **values: Any) -> None:
        c.Structure.__init__(self, struct_type=kind, struct_size=c.sizeof(type(self)), **values)

    header = [("struct_type", c.c_int), ("struct_size", c.c_size_t), ("struct_next", c.c_void_p)]
    return type(name, (c.Structure,), {"_fields_": [*header, *fields], "__init__": __init__})


_Properties = _structure("Properties", 1, ("version", c.c_uint32), ("cudart_version", c.c_uint32))
_InstanceInfo = _structure(
    "InstanceInfo",
    2,
    ("load_builtin_modules", c.c_int),
    ("load_extension_modules", c.c_int),
    ("extension_modules_path", c.c_char_p),
    ("create_debug_messenger", c.c_int),
    ("debug_messenger", c.c_void_p),
    ("message_severity", c.c_uint32),
    ("message_category", c.c_uint32),
)
_DecodeParams = _structure("DecodeParams", 5, ("apply_exif_orientation", c.c_int))
_Orientation = _structure("Orientation", 7, ("rotated", c.c_int), ("flip_x", c.c_int), ("flip_y", c.c_int))
_Plane = _structure(
    "Plane",
    12,
    ("width", c.c_uint32),
    ("height", c.c_uint32),
    ("row_stride", c.c_size_t),
    ("num_channels", c.c_uint32),
    ("sample_type", c.c_int),
    ("precision", c.c_uint8),
)
_ImageInfo = _structure(
    "ImageInfo",
    11,
    ("codec_name", c.c_char * 256),
    ("color_spec", c.c_int),
    ("chroma_subsampling", c.c_int),
    ("sample_format", c.c_int),
    ("orientation", _Orientation),
    ("num_planes", c.c_uint32),
    ("planes", _Plane * 32),
    ("buffer", c.c_void_p),
    ("buffer_kind", c.c_int),
    ("stream", c.c_void_p),
)
_BackendParams = _structure("BackendParams", 29, ("load_hint", c.c_float), ("load_hint_policy", c.c_int))
_Backend = _structure("Backend", 17, ("kind", c.c_int), ("params", _BackendParams))
_ExecutionParams = _structure(
    "ExecutionParams",
    30,
    ("device_allocator", c.c_void_p),
    ("pinned_allocator", c.c_void_p),
    ("max_num_cpu_threads", c.c_int),
    ("executor", c.c_void_p),
    ("device_id", c.c_int),
    ("pre_init", c.c_int),
    ("skip_pre_sync", c.c_int),
    ("num_backends", c.c_int),
    ("backends", c.POINTER(_Backend)),
)


class NvImageCodec:
    """On a CPU it decodes with its libjpeg-turbo: how it is tested where there is no GPU.

    Colours are upsampled as libjpeg-turbo does it by default ("fancy"): measured on an H100, no pixel of 214 pictures
    differs by more than 1 of 255. nvJPEG alone, as torchvision calls it, differs by up to 3 on average.

    Raises:
        OSError: it is not installed, of another version, or cannot be used on this device.
    """

    def __init__(self, device: torch.device) -> None:
        folder = _folder()
        self._device, self._is_gpu = device, device.type == "cuda"
        # Calls of the first let other threads run meanwhile; those of the second take a microsecond, and do not.
        self._slow, self._quick = (load(str(folder / "libnvimgcodec.so.0")) for load in (c.CDLL, c.PyDLL))
        properties = _Properties()
        _check("nvimgcodecGetProperties", self._quick.nvimgcodecGetProperties(c.byref(properties)))
        if properties.version not in VERSIONS:
            raise OSError(f"nvImageCodec {properties.version}: its C interface is known of 0.9 only")
        self._instance, self._decoder = _Handle(), _Handle()
        about = _InstanceInfo(
            load_builtin_modules=1, load_extension_modules=1, extension_modules_path=str(folder / "extensions").encode()
        )
        self._call("nvimgcodecInstanceCreate", c.byref(self._instance), c.byref(about))
        on_cpu = _Backend(kind=_CPU_BACKEND, params=_BackendParams(load_hint=1.0))
        how = _ExecutionParams(
            max_num_cpu_threads=CPU_THREADS,
            device_id=_index(device) if self._is_gpu else _CPU_ONLY,
            num_backends=0 if self._is_gpu else 1,
            backends=None if self._is_gpu else c.pointer(on_cpu),
        )
        options = b":fancy_upsampling=1"
        self._call("nvimgcodecDecoderCreate", self._instance, c.byref(self._decoder), c.byref(how), options)
        self._params = _DecodeParams()
        self._stream = torch.cuda.Stream(device) if self._is_gpu else None
        self._turn = threading.Lock()  # it decodes for one thread at a time
        self._streams: Any = (_Handle * 0)()
        self._images: Any = (_Handle * 0)()
        self._about: list[Any] = []
        self._planes: list[Any] = []
        self._found = _ImageInfo()

    def __call__(self, pictures: Sequence[bytes], shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor | None]:
        """JPEGs of (height, width) each → uint8 [3, height, width] each on the device, None for what it cannot read or
        finds to be of another size."""
        starts = list(accumulate((-(-3 * h * w // _ALIGNED) * _ALIGNED for h, w in shapes), initial=0))
        with self._turn, torch.cuda.stream(self._stream) if self._stream else nullcontext():
            flat = torch.empty(starts.pop(), dtype=torch.uint8, device=self._device)
            self._grow(len(pictures))
            buffer, taken = flat.data_ptr(), []
            for i, (data, shape, start) in enumerate(zip(pictures, shapes, starts, strict=True)):
                if self._take(len(taken), data, *shape, buffer + start):
                    taken.append(i)
            decoded = {i for i, ok in zip(taken, self._decoded(len(taken)), strict=True) if ok}
            if self._stream:
                self._stream.synchronize()
                flat.record_stream(torch.cuda.default_stream(self._device))  # where it is read
        places = enumerate(zip(shapes, starts, strict=True))
        return [
            flat.as_strided((3, h, w), (1, 3 * w, 3), start) if i in decoded else None for i, ((h, w), start) in places
        ]

    def _take(self, k: int, data: bytes, height: int, width: int, buffer: int) -> bool:
        """Makes `data` the k-th picture that is decoded to `buffer`, if the library finds the same size in it."""
        stream, length, found = c.byref(self._streams, k * _POINTER), c.c_size_t(len(data)), self._found
        if self._quick.nvimgcodecCodeStreamCreateFromHostMem(self._instance, stream, data, length, None) != _SUCCESS:
            return False
        if self._quick.nvimgcodecCodeStreamGetImageInfo(_Handle(self._streams[k]), c.byref(found)) != _SUCCESS:
            return False
        if (found.planes[0].height, found.planes[0].width) != (height, width):
            return False
        about, plane = self._about[k], self._planes[k]
        plane.height, plane.width, plane.row_stride, about.buffer = height, width, 3 * width, buffer
        image = c.byref(self._images, k * _POINTER)
        return self._quick.nvimgcodecImageCreate(self._instance, image, c.byref(about)) == _SUCCESS

    def _decoded(self, num: int) -> list[bool]:
        if not num:
            return []
        future, found, size = _Handle(), (c.c_uint32 * num)(), c.c_size_t(num)
        self._call(
            "nvimgcodecDecoderDecode",
            *(self._decoder, self._streams, self._images, num, c.byref(self._params), c.byref(future)),
        )
        try:
            self._call("nvimgcodecFutureWaitForAll", future)  # whatever it says, nothing is under way any more
            self._call("nvimgcodecFutureGetProcessingStatus", future, found, c.byref(size))
        finally:
            self._call("nvimgcodecFutureDestroy", future)
        return [status == _DECODED for status in found]

    def _grow(self, num: int) -> None:
        """Handles for so many pictures, which are used again and again."""
        if num <= len(self._about):
            return
        streams, images = (_Handle * num)(*self._streams), (_Handle * num)(*self._images)
        self._streams, self._images = streams, images
        for _ in range(num - len(self._about)):
            about = _ImageInfo(
                color_spec=_SRGB,
                sample_format=_RGB,
                orientation=_Orientation(),
                num_planes=1,
                buffer_kind=_ON_DEVICE if self._is_gpu else _ON_HOST,
                stream=self._stream.cuda_stream if self._stream else None,
            )
            about.planes[0] = _Plane(num_channels=3, sample_type=_UINT8)
            self._about.append(about)
            self._planes.append(about.planes[0])

    def _call(self, name: str, *arguments: Any) -> None:
        _check(name, getattr(self._slow, name)(*arguments))


_POINTER = c.sizeof(_Handle)


def _check(name: str, status: int) -> None:
    if status != _SUCCESS:
        raise OSError(f"{name}: status {status}")


def _folder() -> Path:
    try:
        found = find_spec("nvidia.nvimgcodec")
    except ImportError:  # no package of NVIDIA's at all
        found = None
    if found is None or not found.origin:
        raise OSError("nvImageCodec is not installed")
    return Path(found.origin).parent


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
