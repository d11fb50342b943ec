"""`fused:`: an encoder whose device decodes and resizes; here the device is the CPU, with nvImageCodec's own codec."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from samples import photographs
from small_models import save_bert, save_clip
from tars import make_tar

import mmstream as mm
from mmstream.bench.pictures import jpegs
from mmstream.encoders.build import load_encoder
from mmstream.encoders.device_pictures import DevicePictures, nvimagecodec
from mmstream.encoders.pictures import PictureModel
from mmstream.errors import UsageError
from mmstream.index.build import build_index
from mmstream.media.decoding import Decoder, Direct
from mmstream.media.filters import Filters
from mmstream.media.sandbox import Sandbox
from mmstream.pipelines.encode import encode_chunk
from mmstream.pipelines.source import ShardTask, from_row, read_rows
from mmstream.search.searcher import open_index
from mmstream.timing import Stopwatch


def loaded(spec: str) -> PictureModel:
    encoder = load_encoder(spec)
    assert isinstance(encoder, PictureModel)
    return encoder


def with_codec(encoder: PictureModel, group: int) -> PictureModel:
    codec = nvimagecodec(encoder.on)
    if codec is None:
        pytest.skip("nvImageCodec is not installed: pip install 'mmstream[test]'")
    encoder.fused, encoder.group = DevicePictures(encoder.preprocessing, encoder.on, decoder=codec), group
    return encoder


def test_its_vectors_are_near_those_without_and_its_fingerprint_is_another(tmp_path: Path) -> None:
    plain, fused = loaded(f"hf:{save_clip(tmp_path)}"), loaded(f"fused:hf:{tmp_path}")
    assert fused.spec == f"fused:hf:{tmp_path}"
    assert fused.fingerprint != plain.fingerprint
    assert (fused.dimension, fused.modalities) == (plain.dimension, plain.modalities)
    pictures, words = photographs(), ["a pier", "a cat"]
    assert np.einsum("nd,nd->n", fused.encode_image(pictures), plain.encode_image(pictures)).min() >= 0.9999
    assert np.array_equal(fused.encode_text(words), plain.encode_text(words))
    assert fused.encode_image([]).shape == (0, plain.dimension)


def test_it_goes_with_frames_on_either_side(tmp_path: Path) -> None:
    save_clip(tmp_path)
    assert loaded(f"frames:3:fused:hf:{tmp_path}").num_frames == loaded(f"fused:frames:3:hf:{tmp_path}").num_frames == 3


def test_what_takes_no_pictures_from_a_device_is_refused(tmp_path: Path) -> None:
    for inner in ("fake:8", f"hf:{save_bert(tmp_path)}"):
        with pytest.raises(UsageError, match="does not take its pictures from a device"):
            load_encoder(f"fused:{inner}")


def encoded(tar: bytes, folder: Path, encoder: PictureModel, decoder: Decoder, **options) -> tuple[pa.Table, pa.Table]:
    (folder / "a.tar").write_bytes(tar)
    info, samples = from_row(next(iter(read_rows(ShardTask(0, str(folder / "a.tar"), len(tar), "")))))
    fields = ["image_sha256", "image_phash"]
    with ThreadPoolExecutor(2) as pool:
        return encode_chunk(info, samples, encoder, fields, pool=pool, watch=Stopwatch(), decoder=decoder, **options)


def png(data: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).save(out, "PNG")
    return out.getvalue()


def test_a_group_that_is_decoded_at_once_gives_the_rows_and_rejects_of_one_by_one(tmp_path: Path) -> None:
    pictures = jpegs(9, 90)
    files = [(f"{i:02}.jpg", data) for i, data in enumerate(pictures)]
    files[2] = ("02.jpg", b"no picture")
    files[3] = ("03.jpg", pictures[3][: len(pictures[3]) // 2])  # cut
    files[4] = ("04.jpg", pictures[4][:300] + bytes(200) + pictures[4][500:-2] + b"\xff\xd9")
    files[5] = ("05.png", png(pictures[5]))
    files[6] = ("06.txt", b"words alone")
    files[7] = ("07.jpg", jpegs(1, 300)[0])
    tar, wanted = make_tar(files), Filters(min_side=64)
    encoder = loaded(f"fused:hf:{save_clip(tmp_path)}")
    assert encoder.group == 1  # without a decoder of the device there is nothing to decode at once
    alone, rejects = encoded(tar, tmp_path, encoder, Direct(), filters=wanted)
    together = with_codec(encoder, 4)
    rows, bad = encoded(tar, tmp_path, together, Direct(), filters=wanted)
    assert rows.drop_columns(["image_embedding"]).equals(alone.drop_columns(["image_embedding"]))
    assert bad.equals(rejects)
    assert {2, 3} <= set(bad["row"].to_pylist())
    a, b = (np.array([v or [0.0] for v in t["image_embedding"].to_pylist()], object) for t in (rows, alone))
    assert all(np.abs(np.subtract(x, y)).max() <= 2e-3 for x, y in zip(a, b, strict=True))
    with Sandbox() as sandbox:  # where a worker has died of the chunk, each picture is decoded alone
        again, bad = encoded(tar, tmp_path, together, sandbox, filters=wanted)
    assert again.equals(alone) and bad.equals(rejects)


@pytest.mark.usefixtures("ray_local")
def test_it_embeds_and_searches_as_any_encoder_does(tmp_path: Path) -> None:
    pictures = jpegs(12, 72)
    (tmp_path / "a.tar").write_bytes(make_tar([(f"{i:02}.jpg", data) for i, data in enumerate(pictures)]))
    spec = f"fused:hf:{save_clip(tmp_path / 'clip')}"
    report = mm.embed(str(tmp_path / "a.tar"), str(tmp_path / "emb"), model=spec)
    assert (report.rows, report.rejects) == (12, {})
    build_index(str(tmp_path / "emb"), str(tmp_path / "index"))
    hits = open_index(str(tmp_path / "index")).search(image=pictures[7], k=1)
    assert hits[0].key == "07" and hits[0].score >= 0.999
