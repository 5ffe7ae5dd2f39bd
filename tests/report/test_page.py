"""The page as text: names never become markup, numbers stay whole, and it is one small file."""

import json
import re
import sys
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from kits.pages import NASTY, bowl, one_weight, picture, two_weights, whole

from minijaxnet.report.page import Page, Picture, Section, Table, Verdict, html_page
from minijaxnet.report.weight import Bowl


def read(text: str) -> ET.Element:
    """The page as a tree, in which the namespace of SVG has gone."""
    text = re.sub(r'<(meta|input)([^>]*)>|<!doctype html>|xmlns(:\w+)?="[^"]*"|xlink:', lambda m: _closed(m), text)
    scripts = r"(<(?:script|style)[^>]*>)(.*?)(</(?:script|style)>)"
    text = re.sub(scripts, lambda m: m[1] + m[2].replace("&", "&amp;").replace("<", "&lt;") + m[3], text, flags=re.S)
    return ET.fromstring(text.replace("<noscript>", "<div>").replace("</noscript>", "</div>"))


def _closed(match: re.Match[str]) -> str:
    return f"<{match[1]}{match[2]}/>" if match[1] else ""


def texts(text: str, tag: str) -> list[str]:
    return ["".join(element.itertext()) for element in read(text).iter(tag)]


def of(*players: Any, **parts: Any) -> str:
    """A page of one section."""
    return html_page(Page("t", [], [Section("s", **({"players": players} | parts))]))


@pytest.fixture(scope="module")
def plain() -> str:
    return html_page(whole())


def data_of(text: str) -> list[Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
    return [json.loads(data, parse_constant=refuse) for data in found]


def test_names_are_shown_as_they_are_and_never_become_markup(plain: str):
    text = html_page(whole(NASTY))
    assert [each.tag for each in read(text).iter() if each.tag != "path"] == [
        each.tag for each in read(plain).iter() if each.tag != "path"
    ]
    assert "<b>" not in text and "<!--" not in text
    assert texts(text, "h1") == [f"A page {NASTY}"] and texts(text, "caption") == [f"Rows {NASTY}"]
    assert [svg.get("aria-label") for svg in read(text).iter("svg")][-1] == f"{NASTY} falls."
    assert [data["names"] for data in data_of(text)] == [[NASTY, "loss"], [NASTY, "u"]]


def test_headings_have_levels_pictures_names_and_ids_are_unique(plain: str):
    elements = list(read(plain).iter())
    levels = [int(each.tag[1]) for each in elements if re.fullmatch("h[1-6]", each.tag)]
    assert levels[0] == levels.count(1) == 1 and max(np.diff(levels)) <= 1
    svgs = [each for each in elements if each.tag == "svg"]
    assert len(svgs) == 4 and all(svg.get("role") == "img" and svg.get("aria-label") for svg in svgs)
    assert [each.get("scope") for each in elements if each.tag == "th"] == ["col", "col", "row", "row"]
    ids = [each.get("id") for each in elements if each.get("id")]
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-describedby", "for", "href"):
        assert {each.get(name, "").removeprefix("#") for each in elements} <= {*ids, ""}, name


def test_a_number_is_shown_short_and_kept_in_full():
    rows = [("float32", np.float32(0.1)), ("third", 1 / 3), ("many", 12_345_678), ("none", None), ("yes", True)]
    cells = list(read(of(tables=[Table("c", ("name", "value"), rows)])).iter("td"))
    assert [cell.text or "" for cell in cells] == ["0.1", "0.333333", "12345678", "", "True"]
    assert [cell.get("data-full") for cell in cells] == [None, repr(1 / 3), None, None, None]


def test_a_verdict_has_a_word_beside_its_mark(plain: str):
    words = texts(plain, "li")[:4]
    assert words == ["✓good: ok plain", "!warning: warning plain", "✗bad: bad plain", "–note: neutral plain"]


def test_the_page_asks_the_network_for_nothing(plain: str):
    addresses = re.sub(r'xmlns(:\w+)?="[^"]*"', "", plain)
    assert not re.findall(r"https?://|//[a-z]+\.[a-z]", addresses)
    assert "default-src 'none'" in plain
    assert not re.findall(r"@import|url\((?!['\"]?#)|<link", plain)


def test_a_page_of_a_million_steps_and_of_fine_curves_and_surfaces_stays_small_and_keeps_the_ends():
    n, around, axes = 1_000_000, np.linspace(1, 6, 100_000), (np.linspace(-2, 2, 500), np.linspace(0, 1, 700))
    one, two = one_weight(n), two_weights(n)._replace(axes=axes, surface=axes[0][:, None] + axes[1])
    text = of(one._replace(bowl=one.bowl._replace(weights=around, losses=bowl(around))), two, pictures=[picture()])
    assert len(text.encode()) < 3e6 and "1,000,000 stops" in text
    first, second = data_of(text)
    for data in (first, second):
        assert len(data["at"]) <= 1_000 and (data["at"][0], data["at"][-1]) == (0, n - 1)
        assert all(len(row) == len(data["at"]) for row in data["stops"])
    weights, _, gradients = np.array(first["curve"])
    assert (weights[0], weights[-1]) == (1, 6)
    np.testing.assert_allclose(gradients, 6 * (3 * weights - 10), rtol=1e-6, atol=1e-6)
    surface = np.array(second["surface"])
    np.testing.assert_allclose(surface[[0, 0, -1, -1], [0, -1, 0, -1]], [-2, -1, 2, 3])


def test_stops_are_the_recorded_numbers_in_the_fewest_digits():
    player = one_weight(3_000)
    data = data_of(of(player))[0]
    assert np.array_equal(data["stops"], np.array([*player.bowl[2:], player.steps])[:, data["at"]])
    *record, steps = (np.asarray([value], np.float32) for value in (0.1, 2.24, -24, 0.24))
    narrow = player._replace(bowl=Bowl(*player.bowl[:2], *record), steps=steps)
    assert data_of(of(narrow))[0]["stops"] == [[0.1], [2.24], [-24], [0.24]]


def test_what_is_not_finite_is_valid_json():
    nan, inf = np.nan, np.inf
    around = np.linspace(0, 4, 9)
    losses = np.where(around > 3, inf, bowl(around))
    found = Bowl(around, losses, *(np.array([i, -inf if i == 3 else inf, nan]) for i in (1.0, 2.0, 3.0)))
    one, two = one_weight()._replace(bowl=found, steps=[4.0, inf, nan]), two_weights()
    two.surface[3, 4], two.path[-1], two.losses[-1] = nan, inf, nan
    first, second = data_of(of(one, two))
    assert first["stops"] == [[i, "-Infinity" if i == 3 else "Infinity", "NaN"] for i in (1, 2, 3, 4)]
    assert first["curve"][0] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert (second["surface"][3][4], second["stops"][0][-1]) == ("NaN", "Infinity")


def fails(axes):
    raise ZeroDivisionError("no such <picture>")


ONE, TWO = one_weight(), two_weights()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pictures": [Picture("p", "a", fails)]}, "could not be drawn: ZeroDivisionError: no such &lt;picture&gt;"),
        ({"players": [ONE._replace(learning_rate=0.0)]}, "cannot be played: learning_rate: got 0.0; expected"),
        (
            {"players": [ONE._replace(bowl=ONE.bowl._replace(weights=np.full(51, np.nan)))]},
            "cannot be played: curve: got 0 finite points; expected 2 or more",
        ),
        ({"players": [TWO._replace(axes=(np.ones(21), np.ones(21)))]}, "cannot be played: axes: got values"),
    ],
)
def test_a_picture_or_a_player_that_fails_is_replaced_by_the_reason(parts: dict[str, Any], message: str):
    text = of(tables=[Table("still here", (), ())], **parts)
    assert message in text and "still here" in text and 'id="player' not in text


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (Page("t", [], [Section("s", tables=[Table("c", ("a", "b"), [(1,)])])]), "table 'c': got a row of 1 cells"),
        (Page("t", [Verdict("good", "x")], []), "verdicts: got the kind 'good'; expected one of ok, warning"),
    ],
)
def test_what_does_not_fit_is_refused(page: Page, message: str):
    with pytest.raises(ValueError, match=message):
        html_page(page)


def test_without_jinja2_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'pip install "minijaxnet\[plot\]"'):
        html_page(Page("t", [], []))
