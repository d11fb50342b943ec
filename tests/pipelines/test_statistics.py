"""`stats` on real Ray: what it writes is what NumPy says of the same pixels, however the work is spread."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sounds import encoded, tones
from tars import make_tar

import mmstream as mm
from mmstream.errors import RefusedError, Rejected, TooManyRejectsError, UsageError
from mmstream.media import audio
from mmstream.media.audio import LogMel
from mmstream.media.image import decode
from mmstream.media.sandbox import Sandbox
from mmstream.media.statistics import Statistics
from mmstream.media.statistics_file import StatisticsFile, read_statistics
from mmstream.pipelines import statistics
from mmstream.pipelines.resources import Shares

pytestmark = pytest.mark.usefixtures("ray_local")

Samples = list[list[tuple[str, bytes]]]


def samples_of(tars: list[Path]) -> Samples:
    found: dict[str, list[tuple[str, bytes]]] = {}
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                found.setdefault(member.name.split(".")[0], []).append((member.name, tar.extractfile(member).read()))
    return list(found.values())


def write(folder: Path, samples: Samples, num_shards: int) -> str:
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(samples)), num_shards)):
        (folder / f"{number}.tar").write_bytes(make_tar([file for i in part for file in samples[i]]))
    return str(folder)


def assert_numpy(found: Statistics, values: np.ndarray, rounding: float = 0.0) -> None:
    """`values` are [n, features] to a relative `rounding`; mean and std to 1e-12 beyond it, counts exactly."""
    relative = 1e-12 + rounding
    for feature, column in zip(found.features, values.T, strict=True):
        x = np.asarray(column, np.float64)
        assert (feature.count, feature.missing, feature.non_finite) == (len(x), 0, 0)
        assert (feature.minimum, feature.maximum) == pytest.approx((x.min(), x.max()), rel=rounding, abs=rounding)
        assert feature.mean is not None
        assert feature.mean + feature.mean_low == pytest.approx(x.mean(), rel=relative, abs=relative)
        assert feature.std == pytest.approx(x.std(), rel=relative)


def test_statistics_of_real_pairs_are_numpys_however_the_work_is_spread(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of([shared / "data" / "pairs" / "00000.tar"])
    whole, parts = write(tmp_path / "whole", samples, 1), write(tmp_path / "parts", samples, 5)
    files = {}
    for readers, workers, source in [(1, 1, whole), (1, 1, parts), (2, 2, parts)]:
        shares = Shares(readers, 0.5, workers, 1.0, 0.0, encoder_threads=workers)
        monkeypatch.setattr(statistics, "encode_shares", lambda n, with_gpus, s=shares: s)
        dest = str(tmp_path / f"{workers}-{Path(source).name}.json")
        report = mm.stats(source, dest)
        assert report.samples == report.used == len(samples) and report.rejects == {}
        files[workers, source] = read_statistics(dest)
    assert files[1, parts].to_bytes() == files[2, parts].to_bytes()
    pictures = [data for s in samples for name, data in s if not name.endswith((".json", ".txt"))]
    pixels = np.concatenate([decode(data).rgb.reshape(-1, 3) for data in pictures])
    about = [json.loads(data) for s in samples for name, data in s if name.endswith(".json")]
    captions = [data.decode().strip() for s in samples for name, data in s if name.endswith(".txt")]
    for file in files.values():
        assert_numpy(file.kind("image", ""), pixels)
        names = ["height", "original_height", "original_width", "width"]
        assert file.kind("numbers", "").names == names
        assert_numpy(file.kind("numbers", ""), np.array([[one[n] for n in names] for one in about]))
        assert_numpy(file.kind("captions", ""), np.array([[len(c), len(c.split())] for c in captions]))
        red = file.kind("image", "").features[0]
        wanted = [0.01, 0.5, 0.99]
        assert [red.quantile(q) for q in wanted] == np.quantile(pixels[:, 0], wanted, method="inverted_cdf").tolist()


def test_bad_pictures_are_rejects_with_their_reasons_and_count_for_nothing_else(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "bad_inputs"
    lines = (folder / "EXPECTED.tsv").read_text().splitlines()[1:]
    expected = dict(line.split("\t") for line in lines if line.startswith("images/"))
    data = [(folder / name).read_bytes() for name in expected]
    rng = np.random.default_rng(0)
    good = [rng.integers(0, 256, (24, 24, 3), np.uint8) for _ in data]
    files = [(f"{i:03}b.jpg", bad) for i, bad in enumerate(data)]
    for i, pixels in enumerate(good):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        files.append((f"{i:03}a.png", out.getvalue()))
    (tmp_path / "a.tar").write_bytes(make_tar(sorted(files)))
    report = mm.stats(str(tmp_path / "a.tar"), str(tmp_path / "s.json"), of=["image"], max_rejects=1.0)
    counts, reasons = np.zeros((3, 256), np.int64), {}
    with Sandbox() as child:
        for name, bad in zip(expected, data, strict=True):
            try:
                with child.picture(bad) as picture:
                    good.append(np.array(picture.rgb))
                assert "embeds" in expected[name].split("|")
            except Rejected as e:
                assert str(e.reason) in expected[name].split("|")
                reasons[str(e.reason)] = reasons.get(str(e.reason), 0) + 1
    for pixels in good:
        counts += np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(3)])
    print(f"{len(data)} odd pictures: {report.used - len(data)} used, rejects {report.rejects}, {report.seconds} s")
    assert (report.samples, report.used) == (2 * len(data), len(good)) and report.rejects == reasons
    for feature, count in zip(read_statistics(report.dest).kind("image", "").features, counts, strict=True):
        mean = (np.arange(256) * count).sum() / count.sum()
        assert feature.count == count.sum() and feature.mean == pytest.approx(mean, rel=1e-12)
        deviations = np.square(np.arange(256) - mean) * count
        assert feature.variance == pytest.approx(deviations.sum() / count.sum(), rel=1e-12)


def test_sounds_beside_broken_ones_and_a_shard_that_breaks(tmp_path: Path) -> None:
    sounds = [tones(0.3 + 0.2 * i) for i in range(6)]
    files = [(f"{i}.flac", encoded("flac", s)) for i, s in enumerate(sounds)] + [("x.wav", b"RIFF no sound")]
    (tmp_path / "a.tar").write_bytes(make_tar(files))
    (tmp_path / "b.tar").write_bytes(make_tar([*files[:2], ("cut.flac", b"f" * 5000)])[:-3000])
    source, dest = str(tmp_path / "*.tar"), str(tmp_path / "s.json")
    report = mm.stats(source, dest)
    assert (report.samples, report.used, report.rejects) == (9, 8, {"audio": 1})
    assert [(Path(d.url).name, d.reason) for d in report.damaged] == [("b.tar", "tar_truncated")]
    assert "what lies behind it was not counted" in str(report)
    mels = []
    for data in [data for _, data in files[:6]] + [data for _, data in files[:2]]:
        sound = audio.decode(data)
        mels.append(audio.transform(audio.clean(sound), sound.rate, LogMel()))
    # BLAS multiplies float32 on as many threads as there are, here more than in a worker: last bits differ.
    assert_numpy(read_statistics(dest).kind("audio", ""), np.concatenate(mels), rounding=1e-6)


def test_a_file_is_written_once_and_only_whole(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar([(f"{i}.txt", b"words") for i in range(120)]))
    (tmp_path / "b.tar").write_bytes(make_tar([(f"{i}.jpg", b"none") for i in range(7)]))
    dest = tmp_path / "s.json"
    with pytest.raises(TooManyRejectsError, match="not_image 7"):
        mm.stats(str(tmp_path / "*.tar"), str(dest))
    assert not dest.exists()
    first = mm.stats(str(tmp_path / "a.tar"), str(dest), limit=50)
    before = dest.read_bytes()
    assert (first.samples, first.already_finished) == (50, False)
    assert first.next == [f"mmstream inspect {tmp_path / 'a.tar'}"], "there is no picture to scale"
    again = mm.stats(str(tmp_path / "a.tar"), str(dest), limit=50)
    assert again.already_finished and again.features == first.features
    for changed in ({"limit": 60}, {"limit": 50, "of": ["captions"]}, {"limit": 50, "fields": ["w"]}):
        with pytest.raises(RefusedError, match="Nothing is written over"):
            mm.stats(str(tmp_path / "a.tar"), str(dest), **changed)
    with pytest.raises(RefusedError, match="other shards"):
        mm.stats(str(tmp_path / "b.tar"), str(dest), limit=50)
    (tmp_path / "other.json").write_text('{"mine": 1}')
    with pytest.raises(RefusedError):
        mm.stats(str(tmp_path / "a.tar"), str(tmp_path / "other.json"))
    assert dest.read_bytes() == before and (tmp_path / "other.json").read_text() == '{"mine": 1}'


def test_what_cannot_be_done_is_said_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar([("a.txt", b"words")]))
    source = str(tmp_path / "a.tar")
    with pytest.raises(UsageError, match=r"\.json"):
        mm.stats(source, str(tmp_path / "folder"))
    with pytest.raises(UsageError, match="--of numbers"):
        mm.stats(source, str(tmp_path / "s.json"), of=["image"], fields=["w"])
    (tmp_path / "none.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UsageError, match=r"no shard gave a sample \(the first: not_tar"):
        mm.stats(str(tmp_path / "none.tar"), str(tmp_path / "s.json"))


def test_statistics_go_to_a_store_and_come_back(s3, tmp_path: Path) -> None:
    bucket = s3.bucket("stats")
    (tmp_path / "a.tar").write_bytes(make_tar([("a.json", b'{"w": 3}'), ("b.json", b'{"w": 5}')]))
    report = mm.stats(str(tmp_path / "a.tar"), f"{bucket}/some/where/s.json")
    found: StatisticsFile = read_statistics(report.dest)
    assert [(f.name, f.mean, f.std) for f in found.kind("numbers", "").features] == [("w", 4.0, 1.0)]
