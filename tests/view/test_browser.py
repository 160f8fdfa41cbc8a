"""The replay page in a headless Chromium: buttons, keys, choices, and nothing that a hostile name could run."""

import importlib.util
import os
import shutil
import time

import pytest
from replays import HOSTILE, replay

REQUIRED = os.environ.get("JAXMARKET_BROWSER") == "required"


def _missing(reason):
    if REQUIRED:
        pytest.fail(f"{reason}; .ci/run installs it")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def chromium():
    """A driver of Chromium, for one page after another."""
    if importlib.util.find_spec("selenium") is None:
        _missing("selenium is not installed (pip install jaxmarket[browser])")
    if not (shutil.which("chromium") or shutil.which("chromium-browser")) or not shutil.which("chromedriver"):
        _missing("there is no chromium with a chromedriver (apt-get install chromium chromium-driver)")
    import screenshots  # noqa: PLC0415

    with screenshots.chromium() as driver:
        yield driver


class Page:
    """The page of a replay, and what a test does with it."""

    def __init__(self, driver, path):
        self.driver = driver
        driver.get(path.as_uri())

    def __getitem__(self, name):
        return self.driver.find_element("id", name)

    def keys(self, *keys):
        for key in keys:
            self.driver.find_element("tag name", "body").send_keys(key)

    def choose(self, name, place):
        self.js(f"const s = document.getElementById('{name}'); s.selectedIndex = {place}; "
                "s.dispatchEvent(new Event('change'))")  # fmt: skip

    def js(self, code):
        return self.driver.execute_script(code)

    @property
    def count(self):
        return self["count"].text

    def check(self):
        """No error, no warning, no request, and nothing that a name ran or made."""
        assert [entry["message"] for entry in self.driver.get_log("browser")] == []
        assert self.js("return window.broken === undefined")
        loaded = self.js("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [name for name in loaded if not name.startswith("data:")] == []
        assert self.js("return document.querySelectorAll('img[src=x], script').length") == 2


@pytest.fixture
def page(chromium, tmp_path):
    """``page(replay)`` opens its page; at the end there was no error on any."""
    opened = []

    def show(made):
        opened.append(Page(chromium, made.save(tmp_path / f"{len(opened)}.html")))
        return opened[-1]

    yield show
    for each in opened[-1:]:
        each.check()


@pytest.mark.slow
def test_buttons_keys_and_choices(page):
    shown = page(replay(names=HOSTILE, text=HOSTILE[0]))
    assert shown.driver.title == "Chain <v0> – replay" and shown["title"].text == "Chain <v0>"
    assert shown.count == "auction 1 of 6"
    for button, count in (("forth", 2), ("last", 6), ("back", 5), ("first", 1)):
        shown[button].click()
        assert shown.count == f"auction {count} of 6", button
    shown.js("document.activeElement.blur()")
    for key, count in (("\ue014", 2), ("\ue014", 3), ("\ue012", 2), ("\ue010", 6), ("\ue011", 1), ("\ue00f", 6)):
        shown.keys(key)
        assert shown.count == f"auction {count} of 6"
    # The winner, the amounts and the live text are those of the step.
    assert "is 1.000" in shown["said"].text and shown["said"].get_attribute("aria-live") == "polite"
    assert [row.text for row in shown.driver.find_elements("css selector", "#pay b")] == ["0.250", "1.000"]
    assert HOSTILE[0] in shown["said"].text or HOSTILE[1] in shown["said"].text
    shown.keys("\ue011", " ")
    assert shown["play"].get_attribute("aria-label") == "Pause"
    assert shown["said"].get_attribute("aria-live") == "off"
    shown.keys(" ")
    assert shown["play"].get_attribute("aria-label") == "Play"
    shown.choose("show", 1)
    assert shown.count == "auction 1 of 3"
    shown.choose("show", 2)
    assert shown.count == "moment 1 of 50" and not shown["market"].is_displayed()
    shown["last"].click()
    assert "5 of" not in shown["said"].text and "4 of 4 visited states" in shown["said"].text
    shown.choose("seed", 1)
    assert shown.count == "auction 1 of 6" and shown["market"].is_displayed()
    shown.driver.find_element("css selector", "#all summary").click()
    _wait(lambda: shown.driver.find_elements("css selector", "tbody tr"))
    rows = shown.driver.find_elements("css selector", "tbody tr")
    assert len(rows) == 6
    rows[3].find_element("tag name", "button").click()
    assert shown.count == "auction 4 of 6" and rows[3].get_attribute("aria-current") is not None
    before = shown.js("return getComputedStyle(document.body).backgroundColor")
    shown["theme"].click()
    assert shown.js("return getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.full
@pytest.mark.parametrize("width", [400, 800, 1300])
def test_no_page_is_wider_than_its_window(page, width):
    shown = page(replay(names=[f"a bidder with a long name, number {i}" for i in range(40)], steps=60))
    shown.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        for place in range(3):
            shown.choose("show", place)
            assert shown.js("return document.documentElement.scrollWidth") <= width
    finally:
        shown.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.full
def test_a_label_that_is_cut_keeps_the_number_of_the_clone(page):
    shown = page(replay(names=[f"a bidder with a very long name #{i}" for i in (1, 2)]))
    labels = [text.text for text in shown.driver.find_elements("css selector", "#tracks svg .label")]
    assert sorted(text[-4:] for text in labels if "#" in text) == ["… #1", "… #2"]


@pytest.mark.full
def test_it_plays_to_the_end_and_again(page):
    shown = page(replay(steps=4))
    shown.choose("speed", 4)
    for _ in range(2):
        shown["play"].click()
        _wait(lambda: shown.count == "auction 4 of 4" and shown["play"].get_attribute("aria-label") == "Play")


@pytest.mark.full
def test_a_click_into_the_figure_goes_there(page):
    shown = page(replay(steps=10))
    figure = shown.driver.find_element("css selector", "#tracks svg")
    shown.js("const figure = document.querySelector('#tracks svg'), box = figure.getBoundingClientRect(); "
             "figure.dispatchEvent(new PointerEvent('pointerdown', {clientX: box.left + box.width * .5, "
             "clientY: box.top + 40, buttons: 1}))")  # fmt: skip
    assert shown.count in ("auction 5 of 10", "auction 6 of 10", "auction 7 of 10")
    assert figure.get_attribute("role") == "img" and figure.get_attribute("aria-label")


@pytest.mark.full
def test_everything_that_can_be_pressed_has_a_name(page):
    shown = page(replay())
    nameless = shown.js(
        "return [...document.querySelectorAll('button, select, input, summary')].filter(e => "
        "!(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label')?.textContent.trim())).length"
    )
    assert nameless == 0
    unnamed = shown.js(
        "return [...document.querySelectorAll('section')].filter(section => "
        "!document.getElementById(section.getAttribute('aria-labelledby')).textContent.trim()).length"
    )
    assert unnamed == 0


@pytest.mark.full
def test_a_notebook_shows_it_in_a_frame(chromium, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><title>.</title>{replay(names=HOSTILE)._repr_html_()}")
    chromium.get(path.as_uri())
    chromium.switch_to.frame(chromium.find_element("tag name", "iframe"))
    chromium.find_element("id", "forth").click()
    assert chromium.find_element("id", "count").text == "auction 2 of 6"
    chromium.switch_to.default_content()
    assert [entry["message"] for entry in chromium.get_log("browser")] == []


def _wait(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)
