"""Tables of word vectors: every layout they are published in, and what a text's vector is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mmstream.encoders.base import unit
from mmstream.encoders.build import load_encoder
from mmstream.errors import UsageError
from mmstream.storage.files import write_bytes

TABLE = {"red": [1.0, 0.0, 0.0], "blue": [0.0, 1.0, 0.0], "Paris": [0.0, 0.0, 1.0], ".": [0.5, 0.5, 0.0]}


def write(file: Path, layout: str) -> Path:
    lines = [" ".join([word, *map(str, row)]) for word, row in TABLE.items()]
    if layout == "csv":
        lines = ["word,x,y,z", *(line.replace(" ", ",") for line in lines)]
    if layout == "word2vec":
        lines = [f"{len(TABLE)} 3", *lines]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize(("name", "layout"), [("g.txt", "glove"), ("w.vec", "word2vec"), ("t.csv", "csv")])
def test_a_text_is_the_mean_of_the_rows_of_its_words(name: str, layout: str, tmp_path: Path) -> None:
    encoder = load_encoder(f"words:{write(tmp_path / name, layout)}")
    found = encoder.encode_text(["Red, blue", "red red blue nonsense", "Paris", "paris", "red."])
    wanted = unit(np.array([[0.5, 0.5, 0], [2 / 3, 1 / 3, 0], [0, 0, 1], [np.nan] * 3, [0.75, 0.25, 0]], np.float32))
    assert np.allclose(found, wanted, atol=1e-7, equal_nan=True)
    assert (encoder.dimension, encoder.modalities) == (3, ("text",))


def test_a_word_may_hold_the_separator(tmp_path: Path) -> None:
    write(tmp_path / "g.txt", "glove").write_text("red 1 0 0\n. . . 0 1 0\nblue 0 0 1\n")
    assert load_encoder(f"words:{tmp_path / 'g.txt'}").encode_text(["blue"]).tolist() == [[0, 0, 1]]


def test_the_fingerprint_is_of_the_content_and_a_url_gives_the_same(
    s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSTREAM_CACHE", str(tmp_path / "cache"))
    local = write(tmp_path / "g.txt", "glove")
    url = s3.bucket("words") + "/g.txt"
    write_bytes(url, local.read_bytes())
    here, there = load_encoder(f"words:{local}"), load_encoder(f"words:{url}")
    assert here.fingerprint == there.fingerprint
    local.write_text(local.read_text().replace("1.0", "0.9"))
    assert load_encoder(f"words:{local}").fingerprint != here.fingerprint


def test_what_is_no_table_is_named_by_file_and_line(tmp_path: Path) -> None:
    ragged = tmp_path / "ragged.txt"
    ragged.write_text("red 1 0 0\nblue 0 1\n")
    with pytest.raises(UsageError, match=r"ragged\.txt line 2: is not a word and 3 numbers"):
        load_encoder(f"words:{ragged}")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UsageError, match="holds no word vector"):
        load_encoder(f"words:{tmp_path / 'empty.txt'}")
    safetensors.numpy.save_file({"table": np.ones((3, 2), np.float32)}, tmp_path / "table.safetensors")
    with pytest.raises(UsageError, match=r"tokenizer\.json is missing"):
        load_encoder(f"words:{tmp_path}")


def test_a_real_table_with_its_tokenizer_knows_what_belongs_together(shared_models: Path) -> None:
    encoder = load_encoder(f"words:{shared_models / 'wordllama'}")
    table = safetensors.numpy.load_file(shared_models / "wordllama" / "table.safetensors")
    z = encoder.encode_text(["a cat sits on a mat", "a kitten on the rug", "stock markets fell today"])
    rows = encoder.tokenize(["a kitten on the rug"])["rows"][0]
    mean = next(iter(table.values()))[rows[rows >= 0]].astype(np.float32).mean(0)
    assert np.allclose(z[1], mean / np.linalg.norm(mean), atol=1e-6)
    assert z[0] @ z[1] > z[0] @ z[2] + 0.2
