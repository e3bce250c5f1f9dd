"""The report in a real headless Chromium: it works, it complains of nothing, it asks nobody, and text stays text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cai.report.page import write_report
from tests.support.browser import chromium, complaints, open_file, prefer, requested, resize
from tests.support.report_runs import HOSTILE, make_run, refill, tool_rows

# Starting a browser takes seconds, and selenium leaves its pipes to the garbage collector.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    return write_report([make_run(root)], root / "report.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(browser: Any, report: Path) -> Any:
    """The report, opened afresh at 1400 pixels with all its rows read."""
    resize(browser, 1400, 1000)
    prefer(browser, "light")
    open_file(browser, report)
    ready(browser)
    return browser


def ready(driver: Any, seconds: float = 60) -> None:
    until(lambda: js(driver, "return document.getElementById('list').dataset.ready === 'true'"), seconds)


def until(true: Callable[[], Any], seconds: float = 10) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.02)
    return found


def js(driver: Any, script: str, *args: Any) -> Any:
    return driver.execute_script(script, *args)


def choose(driver: Any, id: str, value: str) -> None:
    """Set a filter as a person does, and wait until it has been applied."""
    script = "delete document.getElementById('list').dataset.ms; const f = document.getElementById(arguments[0]);"
    js(driver, script + "f.value = arguments[1]; f.dispatchEvent(new Event('input', {bubbles: true}));", id, value)
    until(lambda: js(driver, "return document.getElementById('list').dataset.ms !== undefined"))


def label(driver: Any, id: str, text: str) -> str:
    """The value of the choice with that text."""
    options = "[...document.getElementById(arguments[0]).options]"
    found = js(driver, f"return {options}.find((o) => o.textContent === arguments[1])?.value", id, text)
    assert found is not None, f"no choice {text!r} in {id}"
    return str(found)


def count(driver: Any) -> int:
    return int(js(driver, "return document.getElementById('count').textContent").split()[0].replace(",", ""))


def counts(driver: Any, wanted: int) -> None:
    until(lambda: count(driver) == wanted)


def shown(driver: Any) -> list[str]:
    """The prompts of the list as far as they are in the document."""
    return js(driver, "return [...document.querySelectorAll('.option .prompt')].map((n) => n.textContent)")


def keys(driver: Any, id: str, *pressed: str) -> None:
    driver.find_element("id", id).send_keys(*pressed)


def test_the_report_opens_without_complaints_and_asks_nobody(page: Any) -> None:
    page.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    keys(page, "list", "\ue015", "\ue015")
    assert complaints(page) == []
    assert {urlsplit(url).scheme for url in requested(page)} <= {"file", "data", "blob", "about"}
    assert sum(url.startswith("file:") for url in requested(page)) <= 1


def test_a_request_that_leaves_the_page_would_be_stopped_and_seen(page: Any) -> None:
    js(page, "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i);")
    until(lambda: any("Content Security Policy" in line for line in complaints(page)))


def test_every_figure_is_drawn_named_and_described(page: Any) -> None:
    found = js(
        page,
        """return [...document.querySelectorAll('figure svg[role=img]')].map((svg) => ({
            name: document.getElementById(svg.getAttribute('aria-labelledby')).textContent,
            told: document.getElementById(svg.getAttribute('aria-describedby')).textContent,
            width: svg.getBoundingClientRect().width, height: svg.getBoundingClientRect().height,
            marks: svg.querySelectorAll('path, use, text').length,
            numbers: svg.closest('figure').querySelectorAll('tbody tr').length}))""",
    )
    assert len(found) >= 18
    names = " ".join(one["name"] for one in found)
    for wanted in ("Harmlessness against helpfulness", "Reward by round", "calibration", "KL", "Entropy", "beats"):
        assert wanted in names
    for one in found:
        assert one["width"] > 200
        assert one["height"] > 50
        assert one["marks"] > 10
        assert one["numbers"] > 0
        assert len(one["told"]) > 30


def test_pictures_follow_the_theme(page: Any) -> None:
    probe = "return getComputedStyle(document.querySelector('#rl svg text')).fill"
    light = js(page, probe)
    page.find_element("id", "theme").click()
    dark = js(page, probe)
    assert light != dark
    paper = "return getComputedStyle(document.body).backgroundColor"
    assert js(page, paper) == "rgb(20, 22, 26)"
    assert js(page, "return document.getElementById('theme').textContent") == "Light"
    page.find_element("id", "theme").click()
    assert js(page, probe) == light


def test_the_systems_colours_are_taken_until_somebody_chooses(page: Any) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    prefer(page, "dark")
    assert js(page, paper) == "rgb(20, 22, 26)"
    assert js(page, "return document.getElementById('theme').textContent") == "Light"
    prefer(page, "light")
    assert js(page, paper) == "rgb(252, 251, 248)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Any, scheme: str) -> None:
    prefer(page, scheme)
    keys(page, "list", "\ue015")
    choose(page, "f-source", label(page, "f-source", "revise"))
    counts(page, 40)
    keys(page, "list", "\ue010")
    faint = js(page, CONTRAST)
    assert faint == []


CONTRAST = """
const rgb = (c) => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const mixed = (c) => /color\\(srgb/.test(c) ? rgb(c).map((v, i) => (i < 3 ? v * 255 : v)) : rgb(c);
const over = (top, below) => {
  const a = top.length > 3 ? top[3] : 1;
  return [0, 1, 2].map((i) => top[i] * a + below[i] * (1 - a));
};
const light = (c) => c.slice(0, 3).map((v) => v / 255)
  .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (node) => {
  const layers = [];
  for (let n = node; n; n = n.parentElement) layers.push(mixed(getComputedStyle(n).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
};
const faint = new Set();
for (const node of document.querySelectorAll('body *')) {
  if (node.closest('svg') || node.disabled || !node.offsetParent) continue;
  if (![...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim())) continue;
  const below = ground(node), ink = over(mixed(getComputedStyle(node).color), below);
  const [a, b] = [light(ink), light(below)].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) faint.add(`${node.tagName}.${node.className} ${ratio.toFixed(2)}`);
}
return [...faint];
"""


def test_every_field_has_a_label_and_every_button_a_name(page: Any) -> None:
    nameless = js(
        page,
        """return [...document.querySelectorAll('input, select, button, [role=button], [role=region], [role=listbox]')]
            .filter((n) => !(n.labels?.length || n.getAttribute('aria-label') || n.getAttribute('aria-labelledby')
                             || n.textContent.trim())).map((n) => n.outerHTML.slice(0, 80))""",
    )
    assert nameless == []
    landmarks = js(page, "return ['header', 'nav', 'main', 'footer'].map((t) => document.querySelectorAll(t).length)")
    assert landmarks == [1, 1, 1, 1]
    ids = js(page, "return [...document.querySelectorAll('[id]')].map((n) => n.id)")
    assert len(ids) == len(set(ids))


def test_the_first_tab_reaches_the_link_that_skips_to_the_report(page: Any) -> None:
    page.find_element("tag name", "body").send_keys("\ue004")
    assert js(page, "return document.activeElement.textContent") == "Skip to the report"
    assert js(page, "return getComputedStyle(document.activeElement).left") == "0px"


def test_a_step_of_the_plan_opens_by_mouse_and_by_keyboard(page: Any) -> None:
    node = page.find_element("css selector", ".node[aria-label^='revise']")
    panel = page.find_element("id", node.get_attribute("aria-controls"))
    assert not panel.is_displayed()
    page.execute_script("arguments[0].focus()", node)
    node.send_keys("\ue007")
    assert panel.is_displayed()
    assert "makes revisions" in panel.text
    assert node.get_attribute("aria-expanded") == "true"
    assert js(page, "return document.querySelectorAll('.edge.on').length") == 3
    node.send_keys("\ue014")
    assert js(page, "return document.activeElement.getAttribute('aria-label')").startswith("sft")
    page.find_element("css selector", ".node[aria-label^='rl']").click()
    assert not panel.is_displayed()


def test_each_filter_narrows_the_list(page: Any) -> None:
    counts(page, 240)
    choose(page, "f-source", label(page, "f-source", "judge"))
    counts(page, 40)
    choose(page, "f-principle", label(page, "f-principle", "rule-2"))
    counts(page, 10)
    choose(page, "f-topic", label(page, "f-topic", "law"))
    counts(page, 10)
    choose(page, "f-topic", label(page, "f-topic", "health"))
    counts(page, 0)
    page.find_element("id", "f-reset").click()
    counts(page, 240)
    choose(page, "f-text", "QUESTION NUMBER 3")
    # Numbers 3 and 30 to 39, of which the first texts are hostile instead; in each stage but RL, whose prompts are P.
    counts(page, 50)
    choose(page, "f-text", "question number 31")
    counts(page, 5)
    choose(page, "f-text", "a better answer 2 number 31")
    counts(page, 1)
    choose(page, "f-text", "[")
    counts(page, 0 + sum("[" in text for text in HOSTILE) * 6)


def test_scores_filter_and_sort(page: Any) -> None:
    choose(page, "f-score", label(page, "f-score", "p of the preferred"))
    counts(page, 40)
    choose(page, "f-min", "0.80")
    counts(page, 10)
    choose(page, "f-max", "0.805")
    counts(page, 1)
    choose(page, "f-min", "")
    choose(page, "f-max", "")
    counts(page, 40)
    scores = "return [...document.querySelectorAll('.option .score')].map((n) => Number(n.textContent))"
    choose(page, "f-sort", "down")
    found = until(lambda: (s := js(page, scores))[0] == 0.89 and s)
    assert found == sorted(found, reverse=True)
    choose(page, "f-sort", "up")
    found = until(lambda: (s := js(page, scores))[0] == 0.5 and s)
    assert found == sorted(found)


def test_the_list_is_walked_with_the_keyboard(page: Any) -> None:
    keys(page, "list", "\ue015", "\ue015", "\ue015")
    active = js(page, "return document.getElementById('list').getAttribute('aria-activedescendant')")
    assert active == "option-2"
    chosen = page.find_element("id", active)
    assert chosen.get_attribute("aria-selected") == "true"
    assert chosen.get_attribute("aria-posinset") == "3"
    keys(page, "list", "\ue010")
    assert js(page, "return document.getElementById('list').getAttribute('aria-activedescendant')") == "option-239"
    keys(page, "list", "\ue007")
    assert js(page, "return document.activeElement.id") == "sample"
    keys(page, "sample", "\ue00c")
    assert js(page, "return document.activeElement.id") == "list"


def test_only_what_is_visible_is_in_the_document(page: Any) -> None:
    assert 10 < len(shown(page)) < 40
    js(page, "document.getElementById('list').scrollTop = 6000")
    until(lambda: page.find_elements("id", "option-100"))
    assert page.find_elements("id", "option-0") == []


def test_a_revision_shows_what_changed_and_the_principle_that_asked(page: Any) -> None:
    choose(page, "f-source", label(page, "f-source", "revise"))
    counts(page, 40)
    choose(page, "f-text", "a better answer 2 number 20 ")
    counts(page, 1)
    keys(page, "list", "\ue015")
    parts = js(page, "return [...document.querySelectorAll('.part')].map((p) => p.innerText)")
    assert [part.split("\n")[0].split()[0] for part in parts] == [
        "first", "critique", "revision", "critique", "revision"
    ]  # fmt: skip
    assert "rule-1" in parts[1]
    assert "Look for fault 1." in parts[1]
    assert "Mend fault 1." in parts[2]
    last = "document.querySelectorAll('.part')[4]"
    assert js(page, f"return [...{last}.querySelectorAll('del')].map((n) => n.textContent)") == ["1"]
    assert js(page, f"return [...{last}.querySelectorAll('ins')].map((n) => n.textContent)") == ["2"]
    page.find_element("css selector", ".marks input").click()
    assert js(page, f"return {last}.querySelector('.text').innerText") == "A better answer 2 number 20 about rain."


def test_a_judgement_shows_its_probabilities_and_its_question(page: Any) -> None:
    choose(page, "f-source", label(page, "f-source", "judge"))
    counts(page, 40)
    choose(page, "f-text", "chosen number 25")
    counts(page, 1)
    keys(page, "list", "\ue015")
    text = js(page, "return document.getElementById('sample').innerText")
    assert "p 0.75" in text
    assert "p 0.25" in text
    assert "Judged by rule-1: Which has less of fault 1?" in text
    bars = js(page, "return [...document.querySelectorAll('.bar')].map((n) => n.getAttribute('aria-label'))")
    assert bars == ["probability 0.75", "probability 0.25"]
    page.find_element("css selector", "#sample .of button").click()
    counts(page, 6)


def test_hostile_text_stays_text(page: Any) -> None:
    counts(page, 240)
    before = js(page, "return document.querySelectorAll('script, img, iframe, object, embed').length")
    keys(page, "list", *["\ue015"] * 60)
    for source in ("revise", "judge", "sample", "respond", "rl"):
        choose(page, "f-source", label(page, "f-source", source))
        counts(page, 40)
        keys(page, "list", "\ue011", *["\ue015"] * 11)
    assert js(page, "return window.hit") is None
    assert js(page, "return document.querySelectorAll('script, img, iframe, object, embed').length") == before
    assert js(page, "return document.querySelectorAll('a[href^=\"javascript\"], [onload], [onerror]').length") == 0
    assert complaints(page) == []
    choose(page, "f-source", label(page, "f-source", "respond"))
    counts(page, 40)
    keys(page, "list", "\ue011")
    prompts = shown(page)
    assert HOSTILE[0] in prompts
    assert HOSTILE[8] in prompts
    assert "turned [U+202E]gnorw[U+202C] around" in prompts
    assert "[U+001B][31mred[U+001B][0m and [U+0000] null" in prompts
    assert "half [U+D83D] of a pair" in prompts


@pytest.fixture(scope="module")
def tool_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tools")
    run = make_run(root, kinds=("fetch", "read", "respond"))
    refill(run, "respond", tool_rows(20))
    return write_report([run], root / "report.html")


def test_thoughts_are_folded_and_marked_and_tools_are_shown_as_such(browser: Any, tool_report: Path) -> None:
    resize(browser, 1400, 1000)
    prefer(browser, "light")
    open_file(browser, tool_report)
    ready(browser)
    keys(browser, "list", "\ue015")
    parts = js(
        browser,
        """return [...document.querySelectorAll('#sample .part')].map((p) => [p.className.trim(),
            (p.querySelector('h4, summary')).textContent, p.querySelector('.text').textContent])""",
    )
    assert [(kind, head) for kind, head, _ in parts] == [
        ("part thought", "thought before the tool callno part of the answer"),
        ("part", "said beside the tool call"),
        ("part call", "tool calllook_up_</script><script>win"),
        ("part result", "tool resultlook_up_</script><script>win"),
        ("part thought", "thought before the answerno part of the answer"),
        ("part", "answer"),
    ]
    assert parts[0][2] == f"I should look it up: {HOSTILE[0]}"
    assert parts[3][2] == f"What was found: {HOSTILE[0]}"
    assert js(browser, "return document.querySelector('#sample h3').textContent") == "Question 0 that needs a tool"
    earlier = js(browser, "return document.querySelector('#sample > details .text').textContent")
    assert "assistant (thought, not said): An earlier thought" in earlier
    visible = "return [...document.querySelectorAll('#sample .thought .text')].map((n) => n.checkVisibility())"
    assert js(browser, visible) == [False, False]
    js(browser, "document.querySelector('#sample .thought summary').click()")
    assert js(browser, visible) == [True, False]
    for _ in range(19):
        keys(browser, "list", "\ue015")
    assert js(browser, "return window.hit") is None
    assert js(browser, "return document.querySelectorAll('#samples script, img, iframe').length") == 0
    assert complaints(browser) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_thoughts_and_tools_are_readable_on_every_screen(browser: Any, tool_report: Path, scheme: str) -> None:
    for width in (1400, 360):
        resize(browser, width, 800)
        prefer(browser, scheme)
        open_file(browser, tool_report)
        ready(browser)
        keys(browser, "list", *["\ue015"] * 8)
        js(browser, "for (const d of document.querySelectorAll('details')) d.open = true")
        assert js(browser, "return document.documentElement.scrollWidth") <= width
        assert js(browser, "return document.querySelectorAll('#sample .thought, #sample .call').length") == 3
        assert js(browser, CONTRAST) == []


def test_a_narrow_screen_has_no_horizontal_scroll(page: Any) -> None:
    for width in (360, 768):
        resize(page, width, 800)
        js(page, "for (const d of document.querySelectorAll('details')) d.open = true")
        js(page, "for (const s of document.querySelectorAll('.step')) s.hidden = false")
        keys(page, "list", "\ue015", "\ue010", "\ue011")
        for _ in range(9):
            keys(page, "list", "\ue015")
            assert js(page, "return document.documentElement.scrollWidth") <= width
    wide = js(
        page,
        """return [...document.querySelectorAll('main *')].filter((n) => !n.closest('.scroll, #list, svg, pre')
            && n.getBoundingClientRect().right > innerWidth + 1).map((n) => n.outerHTML.slice(0, 80))""",
    )
    assert wide == []


def test_printed_pages_leave_the_browser_of_samples_out(page: Any) -> None:
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not page.find_element("id", "samples").is_displayed()
        assert page.find_element("id", "rl").is_displayed()
        assert js(page, "return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_without_scripts_everything_but_the_samples_is_there(browser: Any, report: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(report.as_uri())
        text = browser.find_element("tag name", "main").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "The browser of samples needs scripts" in text
    assert "Every row accounted for" in text


def test_fifty_thousand_rows_open_filter_and_stay_small_in_the_document(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("many")
    run = make_run(root, rows=20_000, kinds=("fetch", "read", "revise", "judge", "respond"))
    path = write_report([run], root / "report.html", rows=50_000)
    resize(browser, 1400, 1000)
    open_file(browser, path)
    ready(browser, 120)
    assert count(browser) == 50_000
    for text in ("z", "number 1999", "number 19995", "nowhere at all"):
        choose(browser, "f-text", text)
    counts(browser, 0)
    choose(browser, "f-text", "")
    choose(browser, "f-principle", label(browser, "f-principle", "rule-2"))
    until(lambda: 0 < count(browser) < 20_000)
    assert js(browser, "return Number(document.getElementById('list').dataset.ms)") > 0
    keys(browser, "list", "\ue010")
    assert len(shown(browser)) < 40
    assert complaints(browser) == []
