"""What is not wanted is told in a sentence; what no limit was set for passes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmstream.config import overridden
from mmstream.errors import Reason, Rejected, UsageError
from mmstream.media.filters import Filters, check, language


@given(st.text(), st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0, 1e9))
def test_without_limits_everything_passes(text: str, width: int, height: int, seconds: float):
    none = Filters()
    assert none.caption(text) is none.picture(width, height) is none.length(seconds) is None


@pytest.mark.parametrize(
    ("limits", "text", "said"),
    [
        ({"min_characters": 5}, "abcd", "caption of 4 characters, wanted are at least 5"),
        ({"max_characters": 5}, "abcdef", "caption of 6 characters, wanted are at most 5"),
        ({"min_words": 3}, "two words", "caption of 2 words, wanted are at least 3"),
        ({"max_words": 1}, "two words", "caption of 2 words, wanted are at most 1"),
        ({"min_characters": 4, "max_characters": 4, "min_words": 1, "max_words": 1}, "abcd", None),
    ],
)
def test_captions_are_judged_by_length(limits: dict[str, Any], text: str, said: str | None):
    assert Filters.checked(limits).caption(text) == said


@pytest.mark.parametrize(
    ("limits", "size", "said"),
    [
        ({"min_side": 64}, (640, 63), "the shorter side is 63, wanted are at least 64"),
        ({"max_side": 1000}, (10, 1001), "the longer side is 1,001, wanted are at most 1,000"),
        ({"min_pixels": 101}, (10, 10), "100 in all, wanted are at least 101"),
        ({"max_pixels": 99}, (10, 10), "100 in all, wanted are at most 99"),
        ({"min_aspect": 0.5}, (100, 300), "width / height is 0.333, wanted are at least 0.5"),
        ({"max_aspect": 2}, (300, 100), "width / height is 3, wanted are at most 2"),
        ({"min_side": 10, "max_side": 20, "min_aspect": 0.5, "max_aspect": 2}, (10, 20), None),
    ],
)
def test_pictures_are_judged_by_size_and_shape(limits: dict[str, Any], size: tuple[int, int], said: str | None):
    found = Filters.checked(limits).picture(*size)
    assert found is None if said is None else found is not None and found.endswith(said)


def test_sounds_and_videos_are_judged_by_length():
    filters = Filters(min_seconds=1, max_seconds=10)
    assert filters.length(1) is filters.length(10) is None
    assert filters.length(0.5) == "0.5 s long, wanted are at least 1"
    assert filters.length(12.25) == "12.2 s long, wanted are at most 10"


def test_a_reason_becomes_a_reject():
    check(None)
    with pytest.raises(Rejected, match="4 characters") as e:
        check(Filters(min_characters=5).caption("abcd"))
    assert e.value.reason == Reason.FILTERED == "filtered"


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"min_words": 5, "max_words": 4}, "min_words 5 is above max_words 4"),
        ({"min_wrods": 5}, "nearest valid key is 'min_words'"),
        ({"languages": ["English"]}, "languages"),
        ({"min_side": -1}, "min_side"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said):
        Filters.checked(limits)


@pytest.mark.parametrize("written", ["[en, no]", "en,no", '["en", "no"]'])
def test_languages_are_read_as_people_write_them(written: str):
    limits = overridden({}, [f"languages={written}"])
    assert Filters.checked(limits).languages == ("en", "no")


def test_one_language_needs_no_list():
    assert Filters.checked({"languages": "en"}).languages == ("en",)
    assert Filters.checked({"languages": False}).languages == ("no",)  # what YAML makes of Norwegian


def test_captions_in_other_languages_are_told():
    pytest.importorskip("py3langid")
    assert language("ein kleiner roter Kreis über einem blauen Stern") == "de"
    assert language("a small red circle above a blue star") == "en"
    assert language("猫が眠っている") == "ja"
    assert language("1234") == language("") == "und"
    filters = Filters(languages=("en", "fr"))
    assert filters.caption("un petit cercle rouge au-dessus d'une étoile") is None
    assert filters.caption("ein kleiner roter Kreis") == "caption in de, wanted is en, fr"
    assert filters.caption("2024-01-01") is None


def test_the_missing_package_is_named_with_its_extra():
    program = "import sys; sys.modules['py3langid'] = None\nfrom mmstream.media.filters import *\nlanguage('a')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "UsageError" in ended.stderr and "pip install 'mmstream[language]'" in ended.stderr
