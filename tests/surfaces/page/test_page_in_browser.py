"""The page in headless Chromium: every figure drawn, both themes, a phone's width, the keyboard, and no request.

The browser is spoken to through its pipe (DevTools protocol), which needs nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qarat.surfaces.page.document import assemble, document
from qarat.surfaces.page.story import Story
from qarat.values.records.advice import Advice
from qarat.values.records.search import SearchResult
from qarat.values.records.spike_study import SpikeStudy

PATIENCE = 120  # seconds
PHONE, SCREEN = (400, 800), (1000, 900)


class Browser:
    """A headless Chromium with one page."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # Above the places that the child needs, so that putting one there does not close the other.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (to_read, to_write)]

        def take_places() -> None:
            for place, fd in enumerate(ends, 3):
                os.dup2(fd, place)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        self._process = subprocess.Popen(
            [program, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=take_places,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (to_read, to_write, *ends):
            os.close(fd)
        self._buffer, self._calls, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers; what it tells meanwhile is kept in ``events``."""
        self._calls += 1
        message: dict[str, Any] = {"id": self._calls, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "the browser went away"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, page: Path, size: tuple[int, int], scheme: str) -> None:
        """Open a page as a system of that colour scheme shows it to a newcomer, and wait until it is drawn."""
        self.ask("location.protocol === 'file:' && localStorage.clear()")
        width, height = size
        phone = size == PHONE
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.as_uri())
        self.wait_until_drawn(scheme)

    def wait_until_drawn(self, theme: str) -> None:
        end = time.monotonic() + PATIENCE
        while self.ask("document.documentElement?.dataset.drawn ?? ''") != theme:
            assert time.monotonic() < end, "the page was not drawn"
            time.sleep(0.1)

    def press(self, key: str) -> None:
        codes = {"Tab": 9, "Enter": 13}
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], **text)

    def close(self) -> None:
        self.call("Browser.close")
        self._process.wait(PATIENCE)
        for fd in (self._read, self._write):
            os.close(fd)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium: apt-get install --no-install-recommends chromium")
    running = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def pages(
    report: Path, study: SpikeStudy, search: SearchResult, advice: Advice, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """One of every kind."""
    folder = tmp_path_factory.mktemp("pages")
    written = [report]
    for name, record in {"study": study, "search": search, "advice": advice}.items():
        story = Story((record,))
        (folder / f"{name}.html").write_text(document(story, assemble(story)), encoding="utf-8")
        written.append(folder / f"{name}.html")
    return written


@pytest.fixture
def no_complaints(browser: Browser) -> Iterator[None]:
    """Whatever the test did, the console stayed silent and nothing but the page was fetched."""
    browser.events.clear()
    yield
    told = [
        event["params"]
        for event in browser.events
        if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")
    ]
    said = [event["params"] for event in browser.events if event.get("method") == "Runtime.consoleAPICalled"]
    assert not told
    assert not [words["args"] for words in said if words["type"] in ("error", "warning", "assert")]
    asked = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert asked
    assert all(url.startswith("file://") and url.endswith("report.html") for url in asked)


def drawn_marks(browser: Browser) -> dict[str, int]:
    """Of every chart, how many marks with a size it shows."""
    script = """Object.fromEntries([...document.querySelectorAll('[data-chart]')].map((holder) => [
        holder.dataset.chart,
        [...holder.querySelectorAll('.mark-symbol path, .mark-rect path, .mark-line path, .mark-rule line')]
            .filter((mark) => mark.getBoundingClientRect().width + mark.getBoundingClientRect().height > 0).length,
    ]))"""
    return browser.ask(script)


def unfold(browser: Browser) -> None:
    """Open every fold, and wait until its figures are drawn."""
    browser.ask("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    deadline = time.monotonic() + PATIENCE
    while not all(drawn_marks(browser).values()):
        assert time.monotonic() < deadline, drawn_marks(browser)
        time.sleep(0.1)


@pytest.mark.usefixtures("no_complaints")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [SCREEN, PHONE], ids=["screen", "phone"])
def test_every_figure_is_drawn_and_nothing_scrolls_sideways(
    browser: Browser, report: Path, size: tuple[int, int], scheme: str
) -> None:
    browser.open(report, size, scheme)
    figures = {path.stem for path in (report.parent / "figures").glob("*.svg")}
    unfold(browser)
    marks = drawn_marks(browser)
    assert marks.keys() == figures
    assert all(marks.values()), marks
    paper = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.strip("rgb()").split(","))) > 380) == (scheme == "light")
    assert browser.ask("document.documentElement.scrollWidth") <= size[0]
    # Nor is any chart or table wider than the column that it stands in.
    wide = browser.ask(
        """[...document.querySelectorAll('.chart svg, .scroll, pre, dl, h1')]
        .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < 0)
        .map((e) => e.parentElement.id || e.tagName)"""
    )
    assert wide == []


@pytest.mark.usefixtures("no_complaints")
def test_folded_figures_are_drawn_when_they_are_opened(browser: Browser, study: SpikeStudy, tmp_path: Path) -> None:
    story, page = Story((study,)), tmp_path / "report.html"
    page.write_text(document(story, assemble(story)), encoding="utf-8")
    browser.open(page, PHONE, "light")
    folded = "study-8-channel-token"
    assert [key for key, marks in drawn_marks(browser).items() if not marks] == [folded]
    unfold(browser)
    assert browser.ask("document.documentElement.scrollWidth") <= PHONE[0]


@pytest.mark.usefixtures("no_complaints")
def test_everything_is_reached_by_keyboard(browser: Browser, report: Path) -> None:
    browser.open(report, SCREEN, "light")
    browser.press("Tab")
    assert browser.ask("document.activeElement.className") == "skip"
    browser.press("Tab")
    assert browser.ask("document.activeElement.id") == "theme"
    browser.press("Enter")
    browser.wait_until_drawn("dark")
    assert browser.ask("document.activeElement.getAttribute('aria-label')") == "Switch to the light theme"
    assert all(drawn_marks(browser).values())
    contents = browser.ask("document.querySelectorAll('nav a').length")
    browser.press("Tab")
    assert browser.ask("document.activeElement.tagName") == "PRE"  # what to type
    for _ in range(contents + 1):
        browser.press("Tab")
    assert browser.ask("document.activeElement.tagName") == "SUMMARY"
    for opened in (False, True):  # the first table is open from the beginning
        browser.press("Enter")
        assert browser.ask("document.activeElement.parentElement.open") == opened
    assert browser.ask("document.activeElement.parentElement.querySelector('table').rows.length") > 1
    browser.ask("delete document.documentElement.dataset.drawn")
    browser.call("Page.reload")
    browser.wait_until_drawn("dark")  # the choice is remembered


@pytest.mark.usefixtures("no_complaints")
def test_a_cell_of_the_map_tells_its_story_on_hover(browser: Browser, report: Path) -> None:
    browser.open(report, SCREEN, "light")
    told = ""
    for attempt in range(100):  # the tooltip comes when the browser next draws, and the page may still be scrolling
        x, y = browser.ask(
            """(() => {
            const cell = document.querySelector('[data-chart=spike-map] .mark-rect path');
            cell.scrollIntoView({ block: 'center', behavior: 'instant' });
            const box = cell.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
            })()"""
        )
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + attempt % 2, y=y)
        told = browser.ask("document.getElementById('vg-tooltip-element')?.innerText ?? ''")
        if told:
            break
        time.sleep(0.1)
    for word in ("stream", "r", "maximum", "value", "token", "position", "channel"):
        assert word in told.split(), told


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(browser: Browser, pages: list[Path], scheme: str) -> None:
    """WCAG 2.2, levels A and AA, with everything unfolded: of a run and a law, a study, a search, and advice."""
    axe = os.environ.get("AXE_CORE", "")
    if not axe:
        pytest.skip("needs axe-core: npm install axe-core, and AXE_CORE=node_modules/axe-core/axe.min.js")
    for page in pages:
        browser.open(page, SCREEN, scheme)
        unfold(browser)
        browser.ask(f"{Path(axe).read_text('utf-8')};0")
        levels = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
        found = browser.call(
            "Runtime.evaluate",
            expression=f"axe.run(document, {{ runOnly: {levels} }}).then((r) => JSON.stringify(r.violations))",
            awaitPromise=True,
            returnByValue=True,
        )
        assert json.loads(found["result"]["value"]) == []
