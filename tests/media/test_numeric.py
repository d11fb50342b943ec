"""A field is a number, missing, or rejected by name; a missing or far value is settled by its column's rule."""

from __future__ import annotations

import csv
import io
import json
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmstream.errors import Reason, Rejected, UsageError
from mmstream.media.numeric import Columns, Rule, clean, collate, decode, transform
from mmstream.media.statistics import Statistics, Tally


def one(value: Any) -> float:
    return float(decode({"x": value}, ["x"])[0])


def statistics(**columns: list[float]) -> Statistics:
    tally = Tally(list(columns))
    tally.update(np.array(list(columns.values()), np.float64).T)
    return tally.statistics("numbers")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3), (2.5, 2.5), (True, 1), (False, 0), ("1e3", 1000), (" -7 ", -7), (".5", 0.5), ("+2.", 2), ("TRUE", 1),
        ("false", 0), ("inf", math.inf), ("-Infinity", -math.inf), (10**400, math.inf), (-(10**400), -math.inf),
        ("1e999", math.inf), (Decimal("0.25"), 0.25), (np.float32(1.5), 1.5), (np.int64(4), 4), (np.bool_(True), 1),
    ],
)  # fmt: skip
def test_numbers_come_in_many_spellings(value: Any, number: float):
    assert one(value) == number


@pytest.mark.parametrize("value", [None, math.nan, "", "  ", "NA", "n/a", "NaN", "null", "None", "-", Decimal("sNaN")])
def test_missing_values_too(value: Any):
    assert math.isnan(one(value))
    assert math.isnan(decode({}, ["x"])[0])


@pytest.mark.parametrize(
    "value", ["tall", "1,000", "1_000", "0x10", "٣", "12 kg", [1], {"a": 1}, b"1", 1j, "9" * 5_000, "yes"]
)
def test_what_is_no_number_is_rejected_with_the_name_of_its_column(value: Any):
    with pytest.raises(Rejected, match=r"column 'x' holds .*, which is no number") as e:
        one(value)
    assert e.value.reason == Reason.METADATA and len(e.value.detail) < 120


@given(st.floats(allow_nan=False))
def test_every_float_survives_json_and_csv(value: float):
    assert one(json.loads(json.dumps(value))) == value
    assert one(repr(value)) == value


@given(st.text() | st.integers() | st.lists(st.integers()) | st.none() | st.binary())
def test_any_field_whatever_is_a_float_or_rejected(value: Any):
    try:
        assert isinstance(one(value), float)
    except Rejected as e:
        assert e.reason == Reason.METADATA


def test_a_json_object_a_csv_row_and_a_parquet_row_give_the_same():
    names, expected = ["a", "b", "c"], [1.5, math.nan, 1.0]
    table = pa.table({"a": [1.5], "b": pa.array([None], pa.float64()), "c": [True]})
    out = io.BytesIO()
    pq.write_table(table, out)
    rows = [
        json.loads('{"a": 1.5, "b": null, "c": true}'),
        next(csv.DictReader(io.StringIO("a,b,c\n1.5,NA,true\n"))),
        pq.read_table(io.BytesIO(out.getvalue())).to_pylist()[0],
    ]
    for row in rows:
        assert np.array_equal(decode(row, names), expected, equal_nan=True)


def test_a_missing_value_drops_its_row_or_is_filled_by_rule():
    known = statistics(a=[1, 2, 6], b=[1, 2, 6], c=[1, 2, 6], d=[1, 2, 6])
    rules = {"a": Rule(missing="mean"), "b": Rule(missing="median"), "c": Rule(missing=-1), "d": Rule()}
    columns = Columns.of(rules, known)
    values, missing = clean(np.array([np.nan, np.inf, np.nan, 5]), columns)
    assert values.tolist() == [3, 2, -1, 5] and missing.tolist() == [True, True, True, False]
    with pytest.raises(Rejected, match="no value of d; the rule there is to drop the row") as e:
        clean(np.array([1, 1, 1, np.nan]), columns)
    assert e.value.reason == Reason.METADATA


def test_outliers_are_cut_to_quantiles_before_they_are_scaled():
    known = statistics(a=list(range(101)), b=list(range(101)))
    columns = Columns.of({"a": Rule(clip=(0.05, 0.95), scale=None), "b": Rule(scale=None)}, known)
    values, _ = clean(np.array([1e9, 1e9]), columns)
    assert values.tolist() == [95, 1e9]
    assert clean(np.array([-1e9, 3]), columns)[0].tolist() == [5, 3]


def test_each_column_has_its_own_scale():
    random = np.random.default_rng(0)
    raw = random.gamma(2.0, size=(400, 4)) * [1, 100, 1e4, 1]
    tally = Tally(list("abcd"))
    tally.update(raw)
    rules = {"a": Rule(), "b": Rule(scale="minmax"), "c": Rule(scale="robust"), "d": Rule(scale=None)}
    columns = Columns.of(rules, tally.statistics("numbers"))
    scaled = transform(np.stack([clean(row, columns)[0] for row in raw]), columns)
    assert scaled[:, 0].mean() == pytest.approx(0, abs=1e-5) and scaled[:, 0].std() == pytest.approx(1, abs=1e-5)
    assert scaled[:, 1].min() == 0 and scaled[:, 1].max() == 1
    low, median, high = np.quantile(scaled[:, 2], [0.25, 0.5, 0.75])
    assert median == pytest.approx(0, abs=0.02) and high - low == pytest.approx(1, abs=0.03)
    assert np.allclose(scaled[:, 3], raw[:, 3])


def test_a_batch_is_float32_with_a_mask_of_what_was_there():
    columns = Columns.of({"a": Rule(missing=0), "b": Rule(missing=0)}, statistics(a=[0, 2], b=[0, 2]))
    rows = []
    for values, missing in (clean(np.array(r), columns) for r in ([0, np.nan], [2, 2])):
        rows.append((transform(values, columns), missing))
    batch, mask = collate(rows)
    assert batch.dtype == np.float32 and batch.tolist() == [[-1, -1], [1, 1]]
    assert mask.tolist() == [[True, False], [True, True]]


def test_columns_take_their_statistics_by_name_whatever_the_order():
    known = statistics(b=[10, 30], a=[1, 3])
    columns = Columns.of({"a": Rule(missing="mean"), "b": Rule(missing="mean")}, known)
    assert columns.fill.tolist() == [2, 20]
    with pytest.raises(UsageError, match="no statistics of z; the file has b, a"):
        Columns.of({"z": Rule()}, known)


def test_a_column_that_never_had_a_value_is_filled_with_0_and_not_scaled():
    columns = Columns.of({"a": Rule(missing="median", clip=(0, 1))}, statistics(a=[np.nan, np.inf]))
    values, _ = clean(np.array([np.nan]), columns)
    assert transform(values, columns).tolist() == [0]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"missing": "zero"}, "missing"),
        ({"missing": math.nan}, "missing"),
        ({"clip": [0.9, 0.1]}, "must be in order"),
        ({"clip": [-1, 2]}, "clip"),
        ({"scale": "log"}, "scale"),
        ({"scales": "log"}, "nearest valid key is 'scale'"),
    ],
)
def test_a_wrong_rule_is_one_sentence(rule: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said):
        Rule.checked(rule)
