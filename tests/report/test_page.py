"""The page as text: names never become markup, numbers stay whole, and it is one small file."""

import itertools
import json
import re
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from kits.pages import NASTY, bowl, one_weight, picture, two_weights, whole

from minijaxnet.report.page import Page, Picture, Section, Table, Verdict, html_page
from minijaxnet.report.weight import Bowl


class Reader(HTMLParser):
    """The elements in their order, each with its attributes and all text inside."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "input"):
            self._open.append((tag, self.elements[-1][2]))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, said in self._open:
            said.append(data)

    def all(self, *tags: str) -> list[tuple[str, dict[str, str], str]]:
        return [(tag, attributes, "".join(said)) for tag, attributes, said in self.elements if tag in tags]


def of(*players: Any, **parts: Any) -> str:
    """A page of one section."""
    return html_page(Page("t", [], [Section("s", **({"players": players} | parts))]))


@pytest.fixture(scope="module")
def plain() -> str:
    return html_page(whole())


def data_of(text: str) -> list[Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [
        json.loads(said, parse_constant=refuse)
        for _, attributes, said in Reader(text).all("script")
        if attributes.get("type") == "application/json"
    ]


def test_names_are_shown_as_they_are_and_never_become_markup(plain: str):
    text = html_page(whole(NASTY))
    read, expected = Reader(text), Reader(plain)
    assert [tag for tag, _, _ in read.all("script", "b", "h1", "h2", "h3", "td", "th", "li")] == [
        tag for tag, _, _ in expected.all("script", "b", "h1", "h2", "h3", "td", "th", "li")
    ]
    assert "<b>" not in text
    assert "<!--" not in text.replace("&lt;!--", "")
    assert read.all("h1")[0][2] == f"A page {NASTY}"
    assert read.all("caption")[0][2] == f"Rows {NASTY}"
    assert read.all("svg")[-1][1]["aria-label"] == f"{NASTY} falls."
    assert data_of(text)[0]["names"] == [NASTY, "loss"]
    assert data_of(text)[1]["names"] == [NASTY, "u"]


def test_headings_have_levels_pictures_names_and_tables_headings_with_a_scope(plain: str):
    read = Reader(plain)
    levels = [int(tag[1]) for tag, _, _ in read.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    svgs = read.all("svg")
    assert len(svgs) == 4
    assert all(attributes["role"] == "img" and attributes["aria-label"] for _, attributes, _ in svgs)
    assert len(read.all("caption")) == len(read.all("table")) == 1
    assert [attributes["scope"] for _, attributes, _ in read.all("th")] == ["col", "col", "row", "row"]


def test_a_number_is_shown_short_and_kept_in_full():
    rows = [("float32", np.float32(0.1)), ("third", 1 / 3), ("many", 12_345_678), ("none", None), ("yes", True)]
    text = of(tables=[Table("c", ("name", "value"), rows)])
    cells = Reader(text).all("td")
    assert [said for _, _, said in cells] == ["0.1", "0.333333", "12345678", "", "True"]
    assert [attributes.get("data-full") for _, attributes, _ in cells] == [None, repr(1 / 3), None, None, None]


def test_ids_are_unique_and_what_refers_to_one_finds_it(plain: str):
    elements = Reader(plain).elements
    ids = [attributes["id"] for _, attributes, _ in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in elements:
        for reference in ("aria-labelledby", "aria-describedby", "for"):
            assert attributes.get(reference, ids[0]) in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids


def test_a_verdict_is_said_in_words_beside_its_mark(plain: str):
    said = [words for _, _, words in Reader(plain).all("li")][:4]
    assert said == ["✓good: ok plain", "!warning: warning plain", "✗bad: bad plain", "–note: neutral plain"]


def test_the_page_asks_the_network_for_nothing(plain: str):
    addresses = re.sub(r'xmlns(:\w+)?="[^"]*"', "", plain)
    assert not re.findall(r"https?://|//[a-z]+\.[a-z]", addresses)
    assert "default-src 'none'" in plain
    assert not re.findall(r"@import|url\((?!['\"]?#)|<link", plain)


def test_a_page_of_a_million_steps_stays_small():
    n = 1_000_000
    text = of(one_weight(n), two_weights(n), pictures=[picture()])
    assert len(text.encode()) < 3e6
    for data in data_of(text):
        assert len(data["at"]) <= 1_000
        assert (data["at"][0], data["at"][-1]) == (0, n - 1)
        assert all(len(row) == len(data["at"]) for row in data["stops"])
    assert "1,000,000 stops" in text


def test_fine_curves_and_surfaces_stay_small_and_keep_their_ends():
    around, axes = np.linspace(1, 6, 100_000), (np.linspace(-2, 2, 500), np.linspace(0, 1, 700))
    one, two = one_weight(), two_weights()._replace(axes=axes, surface=axes[0][:, None] + axes[1])
    text = of(one._replace(bowl=one.bowl._replace(weights=around, losses=bowl(around))), two)
    assert len(text.encode()) < 5e5
    first, second = data_of(text)
    weights, _, gradients = np.array(first["curve"])
    assert (weights[0], weights[-1]) == (1, 6)
    np.testing.assert_allclose(gradients, 6 * (3 * weights - 10), rtol=1e-6, atol=1e-6)
    assert second["axes"] == [[-2, 2], [0, 1]]
    surface = np.array(second["surface"])
    np.testing.assert_allclose(surface[[0, 0, -1, -1], [0, -1, 0, -1]], [-2, -1, 2, 3])


def test_stops_are_the_recorded_numbers_in_the_fewest_digits():
    player = one_weight(3_000)
    data = data_of(of(player))[0]
    assert data["at"][:40] == list(range(40))
    record = player.bowl.stops, player.bowl.stop_losses, player.bowl.gradients, player.steps
    assert np.array_equal(data["stops"], np.array(record)[:, data["at"]])
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
    assert second["surface"][3][4] == "NaN"
    assert second["stops"][0][-1] == "Infinity"


def test_an_empty_page_and_a_single_stop_are_pages():
    assert "<nav" not in html_page(Page("t", [], []))
    assert "<h2" in of(one_weight(1), two_weights(1))


def fails(axes):
    raise ZeroDivisionError("no such <picture>")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pictures": [Picture("p", "a", fails)]}, "could not be drawn: ZeroDivisionError: no such &lt;picture&gt;"),
        ({"players": [one_weight()._replace(learning_rate=0.0)]}, "cannot be played: learning_rate: got 0.0; expected"),
        (
            {"players": [one_weight()._replace(bowl=one_weight().bowl._replace(weights=np.full(51, np.nan)))]},
            "cannot be played: curve: got 0 finite points; expected 2 or more",
        ),
        ({"players": [two_weights()._replace(axes=(np.ones(21), np.ones(21)))]}, "cannot be played: axes: got values"),
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
