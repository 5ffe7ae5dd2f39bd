"""The page in a real chromium: the player shows the record, the live bowl follows the theory, everyone can use it."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kits.browser import Browser, Tab, browser, chromium
from kits.pages import NASTY, one_weight, two_weights, whole

from minijaxnet.report.page import Page, Section, Table, Text, html_page
from minijaxnet.report.weight import Bowl

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="needs chromium, and none is on the PATH"),
]

# The contrast of each text with what is behind it, as WCAG 2.2 has it.
CONTRASTS = """(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const colour = parse(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
    if (colour[3] !== 0) throw new Error("half a background");
    return behind(element.parentElement);
  };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (element.closest("script, style, noscript") || !element.checkVisibility() || !text) continue;
    const colour = getComputedStyle(element)[element instanceof SVGElement ? "fill" : "color"];
    const [a, b] = [light(parse(colour)), light(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.slice(0, 40)]);
  }
  return found;
})()"""
FOCUS = (
    "[document.activeElement.className || document.activeElement.dataset.act || document.activeElement.tagName, "
    "getComputedStyle(document.activeElement).outlineStyle]"
)
BACKGROUND = "getComputedStyle(document.documentElement).backgroundColor"


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    page, wide = whole(NASTY), Table("Many columns", [f"column {i}" for i in range(20)], [[i / 7 for i in range(20)]])
    wide_section = Section("Wide", tables=[wide], texts=[Text("Long", "x" * 300)])
    path.write_text(html_page(page._replace(sections=[*page.sections, wide_section])), encoding="utf-8")
    return path


@pytest.fixture
def tab(chrome: Browser, written: Path) -> Iterator[Tab]:
    with opened(chrome, written) as made:
        yield made


@contextlib.contextmanager
def opened(chrome: Browser, path: Path) -> Iterator[Tab]:
    """A tab without a complaint."""
    with contextlib.closing(Tab(chrome, path)) as tab:
        yield tab
        assert tab.complaints() == []


def write(path: Path, *players: Any) -> Path:
    path.write_text(html_page(Page("t", [], [Section("s", players=players)])), encoding="utf-8")
    return path


def move(tab: Tab, selector: str, value: int) -> None:
    slider = f"const s = document.querySelector({selector!r}); s.value = {value};"
    tab.run(f"{{ {slider} s.dispatchEvent(new Event('input', {{bubbles: true}})); }}")


def numbers(tab: Tab, *keys: str, player: str = "#player-1-1") -> list[float]:
    return [float(tab.run(f"document.querySelector('{player} [data-key={key}]').value")) for key in keys]


def stop(tab: Tab) -> int:
    return tab.run("Number(document.querySelector('#player-1-1 .stop').value)")


def says(tab: Tab) -> str:
    return tab.run("document.querySelector('#player-1-1 .says').textContent")


def test_a_page_opens_without_a_complaint_and_asks_nobody_and_its_slider_and_its_rate_work(tab: Tab):
    assert [url for url in tab.requests() if not url.startswith("data:")] == []
    assert tab.run("document.querySelectorAll('.player').length") == 2
    move(tab, "#player-1-1 .stop", 7)
    one = one_weight()
    record = (*one.bowl[2:], one.steps)
    assert numbers(tab, "at", "w0", "loss", "gradient", "step0") == [7, *(column[7] for column in record)]
    recorded = says(tab)
    assert recorded.startswith("It converges: flat after 35 steps")  # 0.82 ** 35 is the first power below 1e-3
    move(tab, "#player-1-1 .rates", 1000)
    assert says(tab).startswith("It diverges: each step overshoots") and "beyond the recorded curve" in says(tab)
    move(tab, "#player-1-1 .rates", 0)
    assert says(tab).startswith("It crawls: not there yet after 100 steps")
    tab.run("document.querySelector('[data-act=recorded]').click()")
    assert says(tab) == recorded and tab.run("document.querySelector('.rate').textContent") == "0.01"


@pytest.mark.slow
def test_the_stops_of_two_weights_are_the_records_and_its_path_grows(tab: Tab):
    two, lengths = two_weights(), []
    for i in (0, 3, 7, 18):
        move(tab, "#player-1-2 .stop", i)
        found = numbers(tab, "w0", "w1", "loss", "step0", "step1", player="#player-1-2")
        assert found == [*two.path[i], two.losses[i], *two.steps[i]]
        lengths.append(tab.run("document.querySelector('#player-1-2 .trail').points.numberOfItems"))
    assert lengths == [1, 4, 8, 19]
    assert tab.run("document.querySelector('#player-1-2 image').href.baseVal").startswith("data:image/png")


@pytest.mark.slow
def test_keys_and_buttons_move_the_slider_and_the_numbers_and_reach_every_control(tab: Tab):
    tab.run("document.querySelector('#player-1-1 .stop').focus()")
    for key, code, expected in (("ArrowRight", 39, 1), ("ArrowRight", 39, 2), ("ArrowLeft", 37, 1), ("End", 35, 19)):
        tab.press(key, code)
        assert stop(tab) == expected and numbers(tab, "at") == [expected]
    move(tab, "#player-1-1 .stop", 0)
    for act, expected in (("forward", 1), ("forward", 2), ("back", 1), ("back", 0)):
        tab.run(f"document.querySelector('#player-1-1 [data-act={act}]').click()")
        assert stop(tab) == expected
    assert tab.run("document.querySelector('#player-1-1 [data-act=back]').disabled")
    tab.run("document.activeElement.blur()")
    seen = []
    for _ in range(30):
        tab.press("Tab", 9)
        seen.append(tab.run(FOCUS))
    assert {"play", "forward", "stop", "rates", "scroll", "copy", "A"} <= {name for name, _ in seen}
    assert all(outline == "solid" for name, outline in seen if name != "BODY")


@pytest.mark.slow
@pytest.mark.parametrize("still", [False, True])
def test_play_goes_to_the_end_and_stops(tab: Tab, still: bool):
    tab.emulate(still=still)
    assert (tab.run("getComputedStyle(document.querySelector('.dot')).transitionDuration") == "0s") is still
    time.sleep(0.3)
    assert stop(tab) == 0  # nothing plays by itself
    move(tab, "#player-1-1 .stop", 18)
    play = "document.querySelector('#player-1-1 [data-act=play]')"
    assert tab.run(f"{play}.click(), {play}.textContent") == "Pause"
    tab.until(f"{play}.textContent === 'Play'")
    assert stop(tab) == 19


@pytest.mark.slow
def test_the_rate_decides_as_theory_has_it(chrome: Browser, tmp_path: Path):
    expected = {0.021: "crawls", 0.5: "converges", 0.98: "converges", 1.5: "overshoots and converges"}
    expected |= {1.9999: "overshoots", 2.001: "diverges", 5.0: "diverges"}  # by the rate times the curvature
    players = [one_weight()._replace(learning_rate=product / 18) for product in expected]
    with opened(chrome, write(tmp_path / "page.html", *players)) as tab:
        found = tab.run("[...document.querySelectorAll('.says strong')].map((e) => e.textContent)")
    assert dict(zip(expected, found, strict=True)) == expected


@pytest.mark.slow
def test_the_live_bowl_takes_the_records_steps_and_its_edges_stand_where_the_slider_has_these_rates(tab: Tab):
    x = tab.run("[...document.querySelectorAll('.live-stop')].map((c) => Number(c.getAttribute('cx')))")
    weights = one_weight().bowl.stops
    np.testing.assert_allclose(np.diff(x[:20]) / (x[1] - x[0]), np.diff(weights) / (weights[1] - weights[0]), rtol=1e-6)
    edges = tab.run("[...document.querySelectorAll('.edges span')].map((e) => e.textContent)")
    assert edges == ["1/curvature\n0.0556", "2/curvature\n0.111"]
    for k in (1, 2):
        at = tab.run(f"parseFloat(document.querySelectorAll('.edges span')[{k - 1}].style.left)")
        move(tab, "#player-1-1 .rates", round(10 * at))
        assert tab.run("Number(document.querySelector('.rate').textContent)") == pytest.approx(k / 18, rel=0.01)


@pytest.mark.slow
def test_a_remark_says_that_a_record_leaves_the_picture_or_ends_in_nan(chrome: Browser, tmp_path: Path):
    around = np.linspace(2, 4, 2)
    record = ([2.0, 1e9, np.nan], [16.0, 9e18, np.nan], [-24.0, 1.8e10, np.nan])
    found = Bowl(around, (3 * around - 10) ** 2, *map(np.array, record))
    player = one_weight(name=NASTY)._replace(bowl=found, steps=[1e9, np.nan, np.nan], curvature=None)
    surface = two_weights()
    surface.surface[:5], surface.path[-2:] = np.nan, np.nan
    remarks = {
        (1, 0): "",
        (1, 1): "Outside of the picture, in this direction.",
        (1, 2): "Not finite here: there is nothing to draw.",
    }
    with opened(chrome, write(tmp_path / "page.html", player, surface, one_weight(1))) as tab:
        for (number, at), remark in (remarks | {(2, 29): remarks[1, 2]}).items():
            move(tab, f"#player-1-{number} .stop", at)
            assert tab.run(f"document.querySelector('#player-1-{number} .remark').textContent") == remark
        one_stop = "[...document.querySelectorAll('#player-1-3 :is([data-act=play], .stop)')].every((e) => e.disabled)"
        assert tab.run(one_stop), "there is nothing to play"


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1200])
def test_the_page_never_scrolls_sideways(tab: Tab, width: int):
    tab.resize(width)
    assert tab.until(f"document.scrollingElement.clientWidth <= {width}")
    assert tab.run("document.scrollingElement.scrollWidth") <= width
    outside = tab.run(
        f"[...document.querySelectorAll('main *, header *')].filter((e) => !e.closest('.scroll, pre, svg, .unseen') &&"
        f" e.checkVisibility() && e.getBoundingClientRect().right > {width} + 0.5).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


@pytest.mark.slow
@pytest.mark.parametrize(("dark", "colour"), [(False, "rgb(255, 255, 255)"), (True, "rgb(22, 24, 28)")])
def test_dark_mode_is_dark_and_every_text_can_be_read(tab: Tab, dark: bool, colour: str):
    tab.emulate(dark=dark)
    assert tab.run(BACKGROUND) == colour
    contrasts = tab.run(CONTRASTS)
    assert len(contrasts) > 80
    assert not [text for contrast, text in contrasts if contrast < 4.5]


@pytest.mark.slow
def test_paper_is_white_and_has_the_pictures_without_the_controls(tab: Tab):
    tab.emulate(dark=True, media="print")
    assert tab.run(BACKGROUND) == "rgb(255, 255, 255)"
    visible = "[...document.querySelectorAll('{}')].filter((e) => e.checkVisibility() && e.clientHeight > 20).length"
    assert tab.run(visible.format("button, input, nav")) == 0
    assert tab.run(visible.format("figure svg, .record .stage")) == 3


@pytest.mark.slow
def test_pictures_sliders_and_buttons_have_names(tab: Tab):
    named: dict[str, list[str]] = {}
    for node in tab.call("Accessibility.getFullAXTree")["nodes"]:
        if not node["ignored"]:
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert [len(named[role]) for role in ("image", "slider", "button")] == [4, 3, 9]
    assert {"banner", "main", "navigation", "table"} <= named.keys()
    for role in ("image", "slider", "button", "navigation", "table", "region"):
        assert all(named[role]), role


@pytest.mark.slow
def test_a_table_is_copied_in_full_and_selected_where_it_may_not_be(tab: Tab):
    tab.run("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    tab.run("document.querySelector('.copy').click()")
    tab.until("document.querySelector('.copy').textContent === 'Copied'")
    quoted = '"' + NASTY.replace('"', '""') + '"'
    assert tab.run("window.copied") == f"{quoted},loss\r\n{quoted},{1 / 3!r}\r\nb,nan\r\n"
    tab.run("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    tab.run("document.querySelector('.copy').click()")
    tab.until("document.activeElement.tagName === 'TEXTAREA'")
    assert tab.run("String(document.activeElement.value)").endswith("b,nan\n")


@pytest.mark.slow
def test_without_scripts_everything_but_the_players_is_there(tab: Tab):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    tab.call("Page.reload")
    time.sleep(0.2)
    assert tab.until("document.readyState === 'complete' && !document.documentElement.classList.length")
    visible = [
        tab.run(f"document.querySelector('{each}').checkVisibility()") for each in ("noscript p", "table", ".player")
    ]
    assert visible == [True, True, False]
