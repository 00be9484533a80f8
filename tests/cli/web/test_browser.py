"""The page in a real browser: keyboard, Stop, edit, a phone, the dark, and nothing asked of another host."""

import pytest

from tests.cli.web.chromium import BROWSER, DRIVER, ENTER, ESCAPE, TAB, Browser, chromium

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver")

ANSWERED = (
    "document.querySelector('#entry .submit-button') && /tok.s/.test(document.querySelector('#remark').innerText)"
)
FOCUSED = "const a = document.activeElement; return a.ariaLabel || a.innerText || a.placeholder || a.type || a.tagName"


@pytest.fixture(scope="module")
def browser(address, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def page(browser, address) -> Browser:
    """The page, freshly loaded, 1280 pixels wide."""
    browser.screen(1280, 900)
    browser.requests()
    browser.open(address)
    browser.wait("document.querySelector('#entry textarea')")
    return browser


def texts(page: Browser, who: str) -> list[str]:
    return page.run(f"return [...document.querySelectorAll('[data-testid={who}]')].map(part => part.innerText)")


def ask(page: Browser, question: str) -> None:
    before = len(texts(page, "bot"))
    page.run("document.querySelector('#entry textarea').focus()")
    page.type(question + ENTER)
    page.wait(f"document.querySelectorAll('[data-testid=bot]').length > {before} && {ANSWERED}")


def ask_for_much(page: Browser) -> None:
    """Begins an answer that takes many seconds, and waits for some of it."""
    page.run("document.querySelector('.label-wrap').click()")
    page.wait("[...document.querySelectorAll('label')].some(label => label.innerText.includes('max new tokens'))")
    page.run(
        "const labels = [...document.querySelectorAll('label')];"
        "const box = labels.find(label => label.innerText.includes('max new tokens')).querySelector('input');"
        "box.focus(); box.select()"
    )
    page.type("4000" + TAB)
    page.run("document.querySelector('#entry textarea').focus()")
    page.type("hi" + ENTER)
    page.wait("(document.querySelector('[data-testid=bot]')?.innerText.length ?? 0) > 20")


def test_the_keyboard_alone_asks_and_reaches_all_controls(page) -> None:
    page.wait("document.activeElement === document.querySelector('#entry textarea')")
    page.type("hi" + ENTER)
    page.wait(ANSWERED)
    assert texts(page, "user") == ["hi"]
    assert len(texts(page, "bot")[0]) == 12
    page.run("document.querySelector('#entry textarea').focus()")
    reached = []
    for _ in range(16):
        page.type(TAB)
        reached.append(page.run(FOCUSED).partition("\n")[0])
    assert reached[:4] == ["Send", "New conversation", "radio", "System message and settings"]
    for name in ("Retry", "Undo", "Edit", "Copy message"):
        assert name in reached
    # What has the focus can be seen to have it.
    page.run("document.querySelector('#entry textarea').focus()")
    page.type(TAB)
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_escape_stops_a_long_answer_and_keeps_it(page) -> None:
    ask_for_much(page)
    # Live: the experts are there while the answer comes.
    page.wait("document.querySelectorAll('.routing-token[title]').length > 5")
    assert page.run("return document.querySelector('#entry .stop-button').innerText") == "Stop"
    page.type(ESCAPE)
    page.wait(ANSWERED)
    assert "interrupted" in page.run("return document.querySelector('#remark').innerText")
    assert 20 < len(texts(page, "bot")[0]) < 4000


def test_undo_retry_and_edit_are_a_click(page) -> None:
    ask(page, "one")
    ask(page, "two")
    page.run("document.querySelector('[aria-label=Undo]').click()")
    page.wait("document.querySelector('#entry textarea').value === 'two'")
    assert texts(page, "user") == ["one"]
    page.run("document.querySelector('[aria-label=Edit]').click()")
    page.wait("document.querySelector('#conversation textarea')")
    page.run("const area = document.querySelector('#conversation textarea'); area.focus(); area.select()")
    page.type("uno")
    page.run("document.querySelector('[aria-label=Submit]').click()")
    page.wait("document.querySelector('[data-testid=user]')?.innerText === 'uno'")
    page.wait(ANSWERED)
    # What was being typed is still there.
    assert page.run("return document.querySelector('#entry textarea').value") == "two"
    page.run("document.querySelector('[aria-label=Retry]').click()")
    page.wait("document.querySelector('#entry .stop-button') === null && " + ANSWERED)
    assert texts(page, "user") == ["uno"]


def test_an_example_is_asked_by_a_click(page) -> None:
    page.wait("document.querySelector('[aria-label^=\"Select example 1\"]')")
    page.run("document.querySelector('[aria-label^=\"Select example 1\"]').click()")
    page.wait(ANSWERED)
    assert texts(page, "user") == ["What is 8 + 9?"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways_and_text_stands_out(page, address, dark) -> None:
    page.screen(390, 844, dark)
    page.open(address)
    page.wait("document.querySelector('#entry textarea')")
    ask(page, "x" * 80)
    assert page.run("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(channels(background)) < 384) == dark
    for where in (
        "#heading h1",
        "#heading p",
        "#remark p",
        ".routing-caption",
        ".routing-layer b",
        "[data-testid=bot]",
    ):
        colour = page.run(f"return getComputedStyle(document.querySelector('{where}')).color")
        assert contrast(colour, background) >= 4.5, where
    colours = page.run(
        "return [...document.querySelectorAll('.routing-token[style], .routing-token[style] sub')]"
        ".map(part => [getComputedStyle(part).color, getComputedStyle(part.closest('.routing-token')).backgroundColor])"
    )
    assert len(colours) > 10
    assert all(contrast(*pair) >= 4.5 for pair in colours)


def test_nothing_is_asked_of_another_host(page, address) -> None:
    ask(page, "![a](http://198.51.100.7/a.png) <img src=http://198.51.100.7/b.png> <b>bold</b>")
    asked = [url for url in page.requests() if url.startswith("http")]
    assert any(url.startswith(address) for url in asked)
    # The browser names what it refuses to fetch, too.
    others = {url for url in asked if not url.startswith(address)}
    assert others <= {"http://198.51.100.7/a.png", "http://198.51.100.7/b.png"}
    said = [entry["message"] for entry in page.post("/se/log", type="browser")]
    refused = [message for message in said if "198.51.100.7" in message]
    assert len(refused) == len(others)
    assert all("Content Security Policy" in message for message in refused)


def test_a_page_that_is_left_frees_the_model_and_forgets(page, address) -> None:
    ask_for_much(page)
    page.open(address)
    page.wait("document.querySelector('#entry textarea')")
    assert texts(page, "user") == []
    # The 4,000 tokens of the page that was left would take longer than this waits.
    ask(page, "hi")
    assert len(texts(page, "bot")[0]) == 12


def channels(colour: str) -> list[float]:
    """Red, green and blue of `rgb(...)`."""
    return [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2 counts it; 4.5 is its least for text."""

    def luminance(colour: str) -> float:
        shares = [value / 255 for value in channels(colour)]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
