"""Rows of tables: numbered, typed, and where one cannot be read it says so in its place."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmstream.errors import Rejected, UsageError
from mmstream.schema import MAX_JSON_BYTES
from mmstream.shards.tables import Row, open_table


def rows_of(path: Path, data: bytes | str) -> list[Row]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(open_table(str(path)).rows())


def said(rows: list[Row]) -> list[object]:
    return [str(row.reason) if isinstance(row, Rejected) else row for row in rows]


def test_a_csv_gives_text_numbers_and_rejects_in_the_place_of_broken_rows(tmp_path: Path) -> None:
    lines = ["\ufefffile,caption,n", 'a.jpg,"two, ""quoted""\nlines",3', "b.jpg,,007", "", "c.jpg,x"]
    lines += ["d.jpg,é,-1.5e3", "e.jpg,1e999,1_0", ""]
    data = "\n".join(lines).encode() + b"f.jpg,\xff,1\ng.jpg,last,2"
    assert said(rows_of(tmp_path / "t.csv", data)) == [
        {"file": "a.jpg", "caption": 'two, "quoted"\nlines', "n": 3},
        {"file": "b.jpg", "n": "007"},  # no number of JSON: it would lose its zeros
        "metadata",
        {"file": "d.jpg", "caption": "é", "n": -1500.0},
        {"file": "e.jpg", "caption": "1e999", "n": "1_0"},
        "metadata",
        {"file": "g.jpg", "caption": "last", "n": 2},
    ]


def test_a_field_without_end_costs_a_row_and_not_the_table(tmp_path: Path) -> None:
    found = rows_of(tmp_path / "t.csv", 'a,b\n1,"' + "x" * 140_000 + "\n2,y\n3,z\n")
    assert said(found)[0] == "metadata" and said(found)[-1] == {"a": 3, "b": "z"}


def test_json_lines_keep_what_they_hold_and_say_which_lines_are_none(tmp_path: Path) -> None:
    lines = [
        '{"a": {"b": [1]}, "c": null}',
        "[1]",
        "{",
        '{"d": "é"}',
        "[" * 100_000,
        '{"x": "' + "y" * MAX_JSON_BYTES + '"}',
    ]
    path = tmp_path / "t.jsonl"
    assert said(rows_of(path, "\n\n".join([*lines, '{"z": 1}']))) == [
        {"a": {"b": [1]}},
        "metadata",
        "metadata",
        {"d": "é"},
        "metadata",
        "metadata",
        {"z": 1},
    ]
    assert open_table(str(path)).columns == ["a", "d", "z"]


def test_parquet_gives_values_without_nulls_and_names_what_holds_bytes(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    picture = pa.array([{"bytes": b"x", "path": None}, None, None])
    pq.write_table(pa.table({"image": picture, "raw": [b"", b"1", b"2"], "n": [1.5, float("nan"), None]}), path)
    table = open_table(str(path))
    assert (table.columns, table.binary) == (["image", "raw", "n"], {"image", "raw"})
    assert list(table.rows(["image", "n"])) == [{"image": {"bytes": b"x", "path": None}, "n": 1.5}, {}, {}]
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    with pytest.raises(UsageError, match="breaks after 0 rows"):
        list(open_table(str(path)).rows())


def test_a_table_that_is_none_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.csv"):
        open_table(str(tmp_path / "none.csv"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UsageError, match="no columns"):
        open_table(str(tmp_path / "empty.csv"))
    (tmp_path / "twice.csv").write_text("a,b,a\n")
    with pytest.raises(UsageError, match="more than one column 'a'"):
        open_table(str(tmp_path / "twice.csv"))
    (tmp_path / "t.parquet").write_text("no")
    with pytest.raises(UsageError, match="no Parquet file"):
        open_table(str(tmp_path / "t.parquet"))


VALUES = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4), st.integers() | st.text() | st.booleans()
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUES.filter(bool), min_size=1, max_size=6), st.lists(st.binary(max_size=9), max_size=3))
def test_whatever_bytes_stand_between_lines_of_json_the_others_are_read(
    tmp_path: Path, objects: list[dict], noise: list[bytes]
) -> None:
    lines = [json.dumps(o).encode() for o in objects]
    bad = [b"\x00" + n.replace(b"\n", b"") for n in noise]
    found = rows_of(tmp_path / "t.jsonl", b"\n".join([*lines, *bad, lines[0]]))
    assert said(found) == [*objects, *["metadata"] * len(bad), objects[0]]
