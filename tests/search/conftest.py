"""Twelve pictures in two real tars, embedded by `fake:16` and written as a set."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from embedding_sets import write_set
from PIL import Image

from mmstream.encoders.build import load_encoder
from mmstream.index.build import build_index
from mmstream.search.searcher import Index, open_index

SPEC = "fake:16"


def picture(i: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (400, 300 + i), (20 * i, 255 - 20 * i, 90)).save(out, "PNG" if i % 2 else "JPEG")
    return out.getvalue()


def caption(i: int) -> str:
    return f"picture <number> {i} & more"


def write_tars(folder: Path) -> list[tuple[str, int]]:
    """Two shards of six samples; where each picture's bytes begin is read from the tar afterwards."""
    shards = []
    for shard in range(2):
        path = folder / f"{shard:05}.tar"
        with tarfile.open(path, "w") as tar:
            for row in range(6):
                info = tarfile.TarInfo(f"{shard}{row}.{'png' if row % 2 else 'jpg'}")
                data = picture(6 * shard + row)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        shards.append((str(path), path.stat().st_size))
    return shards


def write_picture_set(folder: Path) -> str:
    encoder = load_encoder(SPEC)
    shards = write_tars(folder)
    z_image = encoder.encode_image([picture(i) for i in range(12)]).astype(np.float16)
    z_text = encoder.encode_text([caption(i) for i in range(12)]).astype(np.float16)
    rows = []
    for shard, (path, _) in enumerate(shards):
        with tarfile.open(path) as tar:
            for row, member in enumerate(tar.getmembers()):
                i = 6 * shard + row
                rows.append(
                    {
                        "shard": shard,
                        "row": row,
                        "key": member.name.split(".")[0],
                        "caption": caption(i),
                        "width": 400,
                        "height": 300 + i,
                        "image_offset": member.offset_data,
                        "image_bytes": member.size,
                        "image_embedding": z_image[i],
                        "text_embedding": z_text[i],
                        "licence": None if i == 3 else f"CC-{i}",
                    }
                )
    return write_set(
        str(folder / "emb"), rows, dimension=16, encoder=SPEC, fingerprint=encoder.fingerprint,
        shards=shards, fields=["licence"],
    )  # fmt: skip


@pytest.fixture
def index_url(tmp_path: Path) -> str:
    build_index(write_picture_set(tmp_path), str(tmp_path / "index"))
    return str(tmp_path / "index")


@pytest.fixture
def index(index_url: str) -> Index:
    return open_index(index_url)
