"""The page in a browser: Debian's Chromium, headless, one session for all of this file."""

from __future__ import annotations

import base64
import os
import re
import shutil
import time
from pathlib import Path

import pytest

import qeval

webdriver = pytest.importorskip("selenium.webdriver")
pytest.importorskip("vl_convert")

SIZES = {"wide": 1280, "narrow": 400}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        reason = "no Chromium with its driver: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def path(made_results, folder) -> Path:
    return qeval.load(made_results).report(folder / "page.html", context=4096)


@pytest.fixture
def page(browser, path, folder):
    """Freshly opened, wide and light. At the end the console is empty and nothing asked of the
    network."""
    size(browser, "wide")
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
    )
    scheme(browser, "light")
    browser.get_log("performance")
    browser.get(path.as_uri())
    until(lambda: browser.execute_script("return document.documentElement.dataset.ready") == "yes")
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    asked = [
        e["message"] for e in browser.get_log("performance") if "requestWillBeSent" in e["message"]
    ]
    assert all('"url":"file://' in m or '"url":"data:' in m or '"url":"blob:' in m for m in asked), (
        asked
    )


def size(browser, name):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": SIZES[name], "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )


def scheme(browser, name, media=""):
    features = [{"name": "prefers-color-scheme", "value": name}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def until(true, seconds=5):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found


def one(browser, selector):
    return browser.find_element("css selector", selector)


def texts(browser, selector):
    """Of the elements that are seen."""
    script = (
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter(e => e.checkVisibility()).map(e => e.innerText)"
    )
    return browser.execute_script(script, selector)


def rows(browser):
    """Names of the table's rows that are seen, in their order."""
    return [re.sub(r"[ †⁰¹²³⁴-⁹]+$", "", name) for name in texts(browser, "#table tbody th")]


def marks(browser):
    """Of each point of the Pareto plot what a screen reader hears."""
    return [label for label, _ in _points(browser)]


def points(browser):
    """By row: state and fill of its point."""
    found = {}
    for label, fill in _points(browser):
        row, _, rest = label.partition(": ")
        found[row] = (rest.partition(",")[0], fill)
    return found


def _points(browser):
    script = (
        "return [...document.querySelectorAll('#pareto-plot .mark-symbol.role-mark path')]"
        ".map(p => [p.getAttribute('aria-label'), p.getAttribute('fill')])"
    )
    return browser.execute_script(script)


def slide(browser, place):
    script = (
        "const slider = document.getElementById('memory'); slider.value = arguments[0];"
        "slider.dispatchEvent(new Event('input'))"
    )
    browser.execute_script(script, place)


def test_every_plot_is_drawn_and_can_be_heard_and_read_as_a_table(page):
    for part in ("pareto", "certainty", "windows", "layers", "speed"):
        assert (
            page.execute_script(f"return document.querySelectorAll('#{part}-plot svg path').length") > 5
        )
        figure = one(page, f"#{part}-plot")
        assert figure.get_attribute("aria-labelledby") == f"{part}-title"
        summary = one(page, f'.numbers[data-plot="{part}"] summary')
        summary.click()
        until(lambda part=part: texts(page, f'.numbers[data-plot="{part}"] td'))
    assert any(label.startswith("Q8_0: ") and "GiB" in label for label in marks(page))


def test_headers_sort_by_the_number_and_turn_and_come_back(page):
    before = rows(page)
    button = one(page, '#table th[data-id="bpw"] button')
    header = one(page, '#table th[data-id="bpw"]')
    button.click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert rows(page)[:3] == ["Q2_K", "RTN W4", "Q4_K_M"] and rows(page) != before
    button.click()
    assert header.get_attribute("aria-sort") == "descending"
    numbers = page.execute_script(
        "const all = s => [...document.querySelectorAll('#table ' + s)];"
        "const i = all('thead th').findIndex(h => h.dataset.id === 'bpw');"
        "return all('tbody tr').map(r => Number(r.cells[i].dataset.value))"
    )
    assert numbers == sorted(numbers, reverse=True)
    button.click()
    assert header.get_attribute("aria-sort") == "none" and rows(page) == before


def test_the_filter_and_its_boxes_leave_the_rows_that_are_meant(page):
    every = rows(page)
    box = one(page, "#filter")
    box.send_keys("gguf q")
    assert rows(page) == ["Q8_0", "Q5_K_M", "Q4_K_M", "Q2_K"]
    assert one(page, "#count").text == f"4 of {len(every)} rows"
    box.clear()
    box.send_keys(" ")
    assert rows(page) == every
    one(page, "#floors").click()
    one(page, "#simulated").click()
    assert rows(page) == [r for r in every if not r.startswith(("floor", "RTN"))]
    headers = len(texts(page, "#table thead th"))
    one(page, "#columns").click()
    assert len(texts(page, "#table thead th")) > headers


def test_hovering_a_point_tells_its_row_in_a_tooltip(page):
    from selenium.webdriver.common.action_chains import ActionChains

    point = one(page, '#pareto-plot .mark-symbol.role-mark path[aria-label^="Q8_0"]')
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(page).move_to_element(point).perform()
    said = until(lambda: next(iter(texts(page, "#vg-tooltip-element.visible")), ""))
    assert "Q8_0" in said and "GiB" in said and "KLD" in said


def test_the_slider_greys_what_does_not_fit_and_says_what_to_run_there(page, made_results):
    before, sentence = points(page), one(page, "#sentence").text
    assert "does not fit" not in {state for state, _ in before.values()}
    assert before["RTN W4"] == ("simulated †", "var(--paper)")
    slide(page, 2)
    until(lambda: points(page) != before)
    after = points(page)
    assert after["none"] == ("does not fit", "var(--grey)")
    assert one(page, "#sentence").text != sentence
    slide(page, 0)
    until(lambda: one(page, "#sentence").text.startswith("Nothing fits"))
    budget = float(one(page, "#memory-said").text.partition(" GiB")[0]) * 2**30
    assert qeval.load(made_results).recommend(ram=budget, context=4096).answer is None


def test_another_context_needs_more(page):
    from selenium.webdriver.support.ui import Select

    before = marks(page)
    Select(one(page, "#context")).select_by_value("131072")
    until(lambda: marks(page) and marks(page) != before)
    assert "131,072 tokens" in one(page, "#sentence").text


def test_a_flip_opens_to_both_completions_the_verdicts_and_the_test(page, made_results):
    flips = page.find_elements("css selector", ".flip")
    assert len(flips) > 1
    lost = next(f for f in flips if "lost" in f.text)
    lost.find_element("css selector", "summary").click()
    until(lambda: len(lost.find_elements("css selector", ".pair pre")) == 2)
    unit = int(lost.text.partition("HumanEval/")[2].split()[0])
    a, b = (p.text for p in lost.find_elements("css selector", ".pair pre"))
    assert a.strip() == f"return {unit}  # none" and f"return {unit}  # " in b and a != b
    assert "passed (sample 0)" in lost.text and "failed: AssertionError: assert 1 == 2" in lost.text
    assert "Its test is not on this page" in lost.text
    assert "McNemar's exact test: p = " in one(page, "#flips-list").text


def test_the_rows_of_a_plot_can_be_chosen(page):
    legend = "return document.querySelectorAll('#certainty-plot .role-legend-label text').length"
    before = page.execute_script(legend)
    one(page, "#certainty .rows summary").click()
    one(page, "#certainty fieldset label:nth-of-type(2) input").click()
    until(lambda: page.execute_script(legend) == before - 1)


def test_downloads_are_the_files(page, folder, made_results):
    for name in ("spec.yaml", "records.jsonl"):
        buttons = page.find_elements("css selector", "#downloads button")
        next(button for button in buttons if button.text == name).click()
        file = until(lambda name=name: (folder / name).exists() and folder / name)
        until(lambda file=file: file.stat().st_size > 0)
        time.sleep(0.1)
    assert (folder / "spec.yaml").read_text() == (made_results / "spec.yaml").read_text()
    folder.joinpath("again").mkdir()
    (folder / "records.jsonl").rename(folder / "again" / "records.jsonl")
    assert len(qeval.load(folder / "again")) == len(qeval.load(made_results))


def luminance(browser, selector, what):
    """Of a colour on the page, from 0 to 1 (WCAG)."""
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    said = browser.execute_script(script, selector, what)
    parts = [float(x) / 255 for x in said.partition("(")[2].strip(")").split(",")[:3]]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(browser, selector, what="color"):
    light, dark = sorted(
        (luminance(browser, selector, what), luminance(browser, "body", "backgroundColor")),
        reverse=True,
    )
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_both_colour_schemes_can_be_read(page, name):
    scheme(page, name)
    paper = luminance(page, "body", "backgroundColor")
    assert (paper > 0.9) if name == "light" else (paper < 0.05)
    for selector in ("body", ".quiet", "#sentence"):
        assert contrast(page, selector) >= 4.5
    for point in ("Q8_0", "none"):
        selector = f'#pareto-plot .mark-symbol.role-mark path[aria-label^="{point}"]'
        assert contrast(page, selector, "fill") >= 3


def test_the_switch_wins_over_the_system(page):
    one(page, '[data-theme="dark"]').click()
    assert luminance(page, "body", "backgroundColor") < 0.05
    scheme(page, "light", "print")  # on paper always light
    assert luminance(page, "body", "backgroundColor") > 0.9
    scheme(page, "light")
    one(page, '[data-theme="light"]').click()
    assert luminance(page, "body", "backgroundColor") > 0.9


@pytest.mark.parametrize("name", list(SIZES))
def test_no_width_makes_the_page_scroll_sideways(page, name):
    size(page, name)
    page.refresh()
    until(lambda: page.execute_script("return document.documentElement.dataset.ready") == "yes")
    assert page.execute_script("return document.documentElement.scrollWidth") <= SIZES[name]
    plots = (
        "return [...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().right)"
    )
    assert max(page.execute_script(plots)) <= SIZES[name]


def test_it_works_from_the_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(80):
        page.switch_to.active_element.send_keys(Keys.TAB)
        script = (
            "const e = document.activeElement; return e.id || e.closest('th')?.dataset.id || e.tagName"
        )
        reached.append(page.execute_script(script))
    assert {"context", "memory", "filter", "bpw", "SUMMARY"} <= set(reached)
    ring = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.execute_script(ring) == "solid"
    header = one(page, '#table th[data-id="bpw"] button')
    header.send_keys(Keys.ENTER)
    assert rows(page)[0] == "Q2_K"
    sentence = one(page, "#sentence").text
    one(page, "#memory").send_keys(Keys.HOME)
    until(lambda: one(page, "#sentence").text != sentence)


def test_it_prints(page):
    made = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(made["data"]).startswith(b"%PDF")
