"""The page in a real browser: Debian's chromium and its driver, against a real server with a small random model."""

import contextlib
import json
import re
import shutil
import time

import httpx
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine.scheduler import Scheduler
from s1jax.serve import handoff_config, page
from s1jax.serve.guards import Rules
from s1jax.serve.handoff import Handoff
from s1jax.serve.prices import Price, Prices
from tests.remote.fake_server import Server
from tests.serve import running
from tests.serve.test_handoff import settings

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NO_BROWSER = "no browser is installed (Debian: apt-get install chromium chromium-driver)"
CURVE = {
    "object": "curve", "model": "tiny", "task": "sums, 100 problems", "problems": 100, "wait": "Wait", "temperature": 0,
    "runs": [
        {
            "name": name, "label": name, "accuracy": accuracy, "interval": [accuracy - 5, accuracy + 5],
            "problems": 100, "thinking_tokens": tokens, "families": families, "thinking_token_budget": budget,
            "num_waits": waits,
        }
        for name, accuracy, tokens, families, budget, waits in (
            ("cut at 16", 10.0, 16.0, ["budgets"], 16, 0),
            ("no limit", 30.0, 60.0, ["budgets", "waits"], 500, 0),
            ("Wait x1", 50.0, 90.0, ["waits"], 500, 1),
            ("Wait x4", 70.0, 200.0, ["waits"], 500, 4),
        )
    ],
}  # fmt: skip
PARAMS = SamplingParams(temperature=1.0, max_thinking_tokens=64, max_answer_tokens=12)


def test_the_policy_allows_the_script_of_the_page_and_nothing_else():
    text = page.FILE.read_text()
    found = dict(part.split(" ", 1) for part in page.policy(text).split("; "))
    assert found["default-src"] == "'none'" and found["connect-src"] == "'self'" and found["img-src"] == "data:"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", found["script-src"]) and "unsafe" not in str(found)
    assert not re.search(r"(src|href)=\"(https?:)?//|@import|url\(|innerHTML|outerHTML|insertAdjacent| style=\"", text)
    assert not re.search(r"\son\w+=\"", text)
    assert page.policy(text.replace("use strict", "use  strict")) != page.policy(text)


class Browser:
    """Chromium with what the tests ask of it."""

    def __init__(self):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, Service(DRIVER))

    def run(self, code, *arguments):
        """Runs JavaScript in the page."""
        return self.driver.execute_script(code, *arguments)

    def open(self, url, width=1280, height=860, scheme="light"):
        """Opens the page in a new tab's state, and waits until it knows the model."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(url)
        self.run("sessionStorage.clear()")
        self.run("addEventListener('pagehide', () => sessionStorage.clear())")
        self.driver.get(url)
        self.until(lambda: self.text("#state") == "ready")

    def find(self, selector):
        """The first element."""
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        """The text of the last element that is there; empty if none is."""
        found = self.driver.find_elements("css selector", selector)
        return found[-1].text if found else ""

    def is_shown(self, selector):
        """Whether the last such element is there and visible."""
        found = self.driver.find_elements("css selector", selector)
        return bool(found) and found[-1].is_displayed()

    def click(self, selector):
        """Clicks the last such element."""
        self.driver.find_elements("css selector", selector)[-1].click()

    def type(self, selector, text):
        """Types into an element; `\\n` is Enter."""
        self.find(selector).send_keys(text.replace("\n", "\ue007"))

    def set(self, name, value):
        """Moves a slider or fills a field, as a user does."""
        code = "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        for event in ("input", "change"):
            code += f"e.dispatchEvent(new Event('{event}', {{bubbles: true}}));"
        self.run(code, name, value)

    def until(self, condition, seconds=60.0):
        """Waits for what the page will show."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(StaleElementReferenceException):
                if condition():
                    return
            assert time.monotonic() < end, f"it did not happen; the page has: {self.text('body')[-2000:]}"
            time.sleep(0.02)

    def finished(self):
        """Waits until nothing is on its way."""
        self.until(lambda: self.is_shown("#send"))

    def errors(self):
        """What the browser complains about, but for answers that are errors by intention."""
        return [e["message"] for e in self.driver.get_log("browser") if "Failed to load resource" not in e["message"]]


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests of the file."""
    pytest.importorskip("selenium")
    if not CHROMIUM or not DRIVER:
        pytest.skip(NO_BROWSER)
    from selenium.common.exceptions import SessionNotCreatedException

    try:
        found = Browser()
    except SessionNotCreatedException as error:
        if "only supports" not in str(error):
            raise
        pytest.skip(f"chromium and chromedriver are of different versions: {error.msg}")
    yield found
    assert found.errors() == []
    found.driver.quit()


@pytest.fixture(scope="module")
def site(engine, about):
    """A server with a curve and a price list."""
    prices = Prices({"tiny": Price(input=1.0, output=2.0)})
    with running.serve(lambda: engine, about, params=PARAMS, curve=CURVE, count=prices.count) as found:
        yield found


@pytest.fixture(scope="module")
def question(site):
    """A question after which the model, greedily, ends its thinking by itself and soon."""

    def ends_by_itself(text):
        fields = {"messages": [{"role": "user", "content": text}], "temperature": 0, "thinking_token_budget": 100}
        reply = httpx.post(f"{site.url}/v1/chat/completions", json=fields, timeout=60).json()
        return reply["choices"][0]["thinking"]["end"] == "natural"

    return next(filter(ends_by_itself, (f"question {i}" for i in range(100))))


@pytest.fixture
def slowly(monkeypatch):
    """Makes the engine take its time, so that a test can act while it thinks."""
    step = Scheduler.step

    def wait_and_step(self, *arguments, **named):
        time.sleep(0.05)
        return step(self, *arguments, **named)

    monkeypatch.setattr(Scheduler, "step", wait_and_step)


def ask(browser, question):
    """Types a question and sends it with Enter; what is sent is kept in `window.sent`."""
    browser.run(
        "if (!window.sent) { window.sent = []; const real = fetch; window.fetch = (path, options) => {"
        " if (options?.body) sent.push([path, JSON.parse(options.body)]); return real(path, options); }; }"
    )
    browser.type("#question", f"{question}\n")


def last_sent(browser):
    """Path and body of the newest request."""
    return browser.run("return window.sent.at(-1)")


def numbers(text):
    """The whole numbers in a text."""
    return [int(each) for each in re.findall(r"\d+", text.replace(",", ""))]


def test_a_question_is_answered_within_the_budget_that_was_dragged(browser, site):
    browser.open(site.url)
    browser.set("temperature", "0")
    browser.set("budget", 20)
    budget = int(browser.find("#tokens").get_attribute("value"))
    assert 30 < budget < 50
    ask(browser, "<img src=x onerror=alert(1)> & more?")
    browser.finished()
    path, body = last_sent(browser)
    assert (path, body["thinking_token_budget"], body["num_waits"]) == ("/v1/chat/completions", budget, 0)
    assert browser.text(".question") == "<img src=x onerror=alert(1)> & more?"
    assert browser.run("return document.querySelectorAll('#turns img').length") == 0
    used, limit = numbers(browser.text(".thinking summary"))
    assert used <= limit == budget
    assert browser.find(".thought").text and browser.find(".answer").text
    tokens, dollars, *_ = browser.text(".facts").split("\n")
    prompt = 2 * 10**-6 * numbers(tokens)[0]
    assert float(dollars.removeprefix("$")) > prompt and "tokens/s" in browser.text(".facts")
    ask(browser, "And?")
    browser.finished()
    roles = [message["role"] for message in last_sent(browser)[1]["messages"]]
    assert roles == ["user", "assistant", "user"] and len(browser.driver.find_elements("css selector", ".turn")) == 2
    browser.click("#new")
    assert browser.is_shown("#welcome") and not browser.is_shown(".turn")


def test_thinking_streams_with_its_waits_marked_and_is_stopped_now(browser, site, question, slowly):
    browser.open(site.url)
    browser.set("times", "64")
    browser.set("wait", " HOLD ")
    browser.set("temperature", "0")
    ask(browser, question)
    browser.until(lambda: len(browser.text(".thought")) > 3)
    assert browser.text(".thinking b") == "Thinking" and not browser.text(".answer")
    assert browser.is_shown("#stop") and not browser.is_shown("#send")
    browser.until(lambda: numbers(browser.text(".facts"))[:1] > [3])
    browser.until(lambda: "$" in browser.text(".facts"))
    browser.until(lambda: browser.text("mark").endswith("HOLD"))  # half characters before it come with it
    browser.click("#enough")
    browser.finished()
    assert "stopped by you" in browser.text(".thinking summary") and browser.text(".answer").startswith("Final Answer:")


def test_an_answer_is_stopped(browser, site, slowly):
    browser.open(site.url)
    browser.set("times", "64")
    ask(browser, "Go on")
    browser.until(lambda: browser.text(".thought"))
    browser.click("#stop")
    browser.finished()
    assert "You stopped this answer" in browser.text(".notice")
    browser.until(lambda: site.worker.stats().running == 0)


def test_a_cut_thought_goes_on_to_a_higher_budget(browser, site):
    browser.open(site.url)
    browser.set("temperature", "0")
    browser.run("document.getElementById('free').click()")
    browser.set("tokens", "8")
    ask(browser, "Think")
    browser.finished()
    before, first = browser.find(".thought").get_attribute("textContent"), numbers(browser.text(".thinking summary"))
    assert first == [8, 8] and "Think longer: up to 16 tokens" in browser.text(".longer")
    browser.click(".longer")
    browser.until(lambda: numbers(browser.text(".thinking summary"))[:2] == [16, 16])
    browser.finished()
    body = last_sent(browser)[1]
    assert body["think_longer"]["id"].startswith("chatcmpl-") and "messages" not in body
    after = browser.find(".thought").get_attribute("textContent")
    assert after.startswith(before.rstrip("\ufffd")) and len(after) > len(before)


def test_a_finished_thought_goes_on_with_one_more_wait(browser, site, question):
    browser.open(site.url)
    browser.set("temperature", "0")
    browser.run("document.getElementById('free').click()")
    browser.set("tokens", "200")
    ask(browser, question)
    browser.finished()
    assert "ended by itself" in browser.text(".thinking summary")
    browser.click(".longer")
    browser.until(lambda: "1 wait" in browser.text(".thinking summary"))
    browser.finished()
    assert last_sent(browser)[1]["num_waits"] == 1 and browser.text("mark").endswith("Wait")


def test_a_reload_keeps_the_conversation_and_the_settings(browser, site):
    browser.open(site.url)
    browser.set("waits", 1)
    browser.run("document.getElementById('free').click()")
    browser.set("tokens", "24")
    ask(browser, "Remember me")
    browser.finished()
    before = browser.text("#turns")
    browser.driver.refresh()
    browser.until(lambda: browser.text("#state") == "ready")
    assert browser.text("#turns") == before and "Remember me" in before
    assert [browser.find(f"#{name}").get_attribute("value") for name in ("tokens", "waits")] == ["24", "1"]
    browser.click(".longer")
    browser.finished()
    assert not browser.is_shown(".notice"), browser.text(".notice")


def test_a_server_that_is_gone_and_comes_back(browser, engine, about):
    with running.serve(lambda: engine, about, params=PARAMS) as server:
        browser.open(server.url)
        port = int(server.url.rpartition(":")[2])
    ask(browser, "Anybody there?")
    browser.until(lambda: browser.is_shown(".notice"))
    assert "does not answer" in browser.text(".notice") and browser.text("#state") == "server gone"
    with running.serve(lambda: engine, about, params=PARAMS, port=port):
        browser.until(lambda: browser.text("#state") == "ready")
        browser.click(".again")
        browser.finished()
        assert browser.text(".answer") and not browser.is_shown(".notice")
        assert not browser.is_shown("#curve")


def test_a_question_that_does_not_fit_says_why_and_is_asked_in_a_new_chat(browser, site):
    browser.open(site.url)
    ask(browser, "Hello")
    browser.finished()
    browser.set("question", "x" * 3000)
    browser.type("#question", "\n")
    browser.until(lambda: browser.is_shown(".notice"))
    assert "2048" in browser.text(".notice")
    browser.click(".alone")
    browser.until(lambda: browser.is_shown(".notice"))
    assert len(browser.driver.find_elements("css selector", ".turn")) == 1 and not browser.is_shown(".alone")


@pytest.fixture
def remote():
    with Server() as found:
        yield found


def test_nothing_leaves_before_the_user_agrees_and_then_the_answer_has_a_badge(
    browser, engine, about, remote, tmp_path
):
    file = tmp_path / "handoff.json"
    file.write_text(json.dumps(settings(remote.url, logprob_below=1.0)))  # every answer is unsure
    handoff = Handoff(handoff_config.load(str(file)), "")
    with running.serve(lambda: engine, about, params=PARAMS, handoff=handoff) as server:
        browser.open(server.url)
        browser.set("handoff", "ask")
        ask(browser, "A hard one")
        browser.until(lambda: browser.is_shown("#consent"))
        local = browser.find(".answer").get_attribute("textContent")
        assert "big at 127.0.0.1" in browser.text("#terms") and "last question" in browser.text("#terms")
        browser.click("#refuse")
        assert not browser.is_shown("#consent") and not browser.is_shown(".badge") and remote.requests == []
        browser.click(".offer")
        browser.click("#agree")
        browser.until(lambda: browser.is_shown(".badge"))
        assert "left this machine: answered by big at 127.0.0.1" in browser.text(".badge")
        assert browser.text(".answer") == "42" and len(remote.requests) == 1
        assert local in browser.find(".local").get_attribute("textContent")
        browser.driver.refresh()
        browser.until(lambda: browser.is_shown(".badge"))


def test_a_key_is_asked_for_and_kept_in_the_tab(browser, engine, about):
    with running.serve(lambda: engine, about, params=PARAMS, rules=Rules(keys=("k1",))) as server:
        browser.driver.get(server.url)
        browser.until(lambda: browser.is_shown("#login"))
        browser.type("#secret", "wrong\n")
        browser.until(lambda: "does not know" in browser.text("#login-note"))
        browser.type("#secret", "k1\n")
        browser.until(lambda: browser.text("#state") == "ready" and not browser.is_shown("#login"))
        browser.driver.refresh()
        browser.until(lambda: browser.text("#state") == "ready")
        ask(browser, "Hello")
        browser.finished()
        assert browser.text(".answer")


def test_the_curve_follows_the_sliders(browser, site):
    browser.open(site.url)
    marks = []
    for budget, waits, said in (
        (None, 0, "30 % right"),
        (None, 4, "70 % right"),
        (None, 2, "About"),
        (16, 0, "10 % right"),
        (40, 2, "Up to 40"),
    ):
        if budget is not None and browser.find("#free").is_selected():
            browser.click("#free")
        if budget is not None:
            browser.set("tokens", str(budget))
        browser.set("waits", waits)
        assert browser.text("#reading").startswith(said)
        marks.append(float(browser.find("#chosen line").get_attribute("x1")))
    assert marks[3] < marks[4] < marks[0] < marks[2] < marks[1]
    assert len(browser.driver.find_elements("css selector", "#plot .bar")) == 5  # one run is on both curves
    assert browser.run("return document.getElementById('table').rows.length") == 4


def test_the_keyboard_alone_and_names_for_a_screen_reader(browser, site):
    browser.open(site.url)
    browser.type("#question", "one\ue008\ue007\ue000two")  # Shift+Enter
    assert browser.find("#question").get_attribute("value") == "one\ntwo" and not browser.is_shown(".turn")
    browser.type("#budget", "\ue011")  # Home
    assert browser.find("#tokens").get_attribute("value") == "0"
    assert browser.find("#budget").get_attribute("aria-valuetext") == "0 tokens"
    browser.type("#budget", "\ue014")  # right
    assert browser.find("#tokens").get_attribute("value") == "2"
    browser.type("#question", "\n")
    browser.finished()
    for element in browser.driver.find_elements(
        "css selector", "button, input, textarea, select, svg[role], [role=region]"
    ):
        if element.is_displayed():
            assert element.accessible_name, element.get_attribute("outerHTML")
    assert (
        browser.find(".answer").get_attribute("aria-live")
        == browser.find("#said").get_attribute("aria-live")
        == "polite"
    )
    order = browser.run(
        "const all = [...document.querySelectorAll('a, button, input, textarea, select, summary')];"
        "return all.filter(e => e.checkVisibility() && !e.disabled).map(e => e.id).filter(Boolean)"
    )
    wanted = ["new", "question", "send", "tokens", "budget", "times", "waits"]
    assert [name for name in order if name in wanted] == wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser, site, scheme):
    """Contrast of 4.5 to 1 or more, as WCAG 2 has it."""
    browser.open(site.url, scheme=scheme)
    browser.set("waits", 2)
    ask(browser, "Go")
    browser.finished()
    assert (browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)") == (
        scheme == "dark"
    )
    for selector in (
        ".question",
        ".thought",
        "mark",
        ".answer",
        ".facts",
        ".thinking summary",
        "#state",
        "#send",
        ".note",
        "#reading",
        "#source",
        ".ticks",
    ):
        assert browser.run(CONTRAST, selector) >= 4.5, selector


CONTRAST = """
const channels = (text) => text.match(/[\\d.]+/g).map(Number);
const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
let element = document.querySelector(arguments[0]);
const ink = light(channels(getComputedStyle(element).color));
while (channels(getComputedStyle(element).backgroundColor)[3] === 0) element = element.parentElement;
const paper = light(channels(getComputedStyle(element).backgroundColor));
return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
"""


def test_a_phone_needs_no_sideways_scrolling(browser, site):
    browser.open(site.url, width=360, height=740)
    ask(browser, "x" * 200)
    browser.finished()
    wide = (
        "return [document.documentElement, ...document.querySelectorAll('#talk, #side')]"
        ".map((element) => element.scrollWidth - element.clientWidth)"
    )
    assert set(browser.run(wide)) == {0} and browser.run("return innerWidth") == 360
    assert not browser.is_shown("#side")
    browser.click("#open")
    assert browser.is_shown("#budget") and set(browser.run(wide)) == {0}
    browser.type("#budget", "\ue00c")  # Escape
    assert not browser.is_shown("#side")
