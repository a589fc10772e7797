"""The page in a real Chromium, as a visitor uses it.

Screenshots are written to the folder that `PICTURES` names (`make test-browser PICTURES=docs/pictures`), else to a
temporary one.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from promptreid.demo.answers import choose_phrase, split_phrases

playwright_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
expect: Any = playwright_api.expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PATIENCE_MS = 60_000

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*SWITCHES, "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[OpenPage]:
    """Open a page in a context of its own; at the end nothing may have gone wrong or elsewhere."""
    expect.set_options(timeout=PATIENCE_MS)
    contexts: list[Any] = []
    faults: list[str] = []

    def open_one(url: str, *, width: int = 1280, height: int = 900) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((url, "data:", "blob:")) or faults.append(f"elsewhere: {request.url}")
            ),
        )
        page.on("response", lambda answer: answer.status >= 400 and faults.append(f"{answer.status}: {answer.url}"))
        page.goto(url)
        expect(page.get_by_role("heading", name="Find a person by description")).to_be_visible()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("PICTURES") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def labels(page: Any, version: int = 0) -> list[str]:
    """What stands below the images of a version."""
    return page.locator(f"#crops-{version} .caption-label").all_inner_texts()


def wait_for_answer(page: Any, count: int = 6) -> None:
    for version in (0, 1):
        expect(page.locator(f"#crops-{version} img")).to_have_count(count)
    expect(page.locator("#heat img")).to_have_count(2)


def wait_until_drawn(page: Any) -> None:
    """Until every image has arrived; those far down are loaded when they are scrolled to."""
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    page.evaluate("window.scrollTo(0, 0)")


def test_page_opens_with_an_answer(drawn_page: Any, open_page: OpenPage, pictures: Path) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    expect(page.locator("#summary")).to_contain_text("120 images from 5 cameras. Drawings of 30 invented people")
    expect(page.locator("#status-0")).to_contain_text("Adapted model: best score")
    expect(page.locator("#status-1")).to_contain_text("Bare model: best score")
    opened_with = page.get_by_label("What does the person look like?").input_value()
    assert opened_with == page.locator("button.example").first.inner_text()
    assert [label.split(" · ")[0] for label in labels(page)] == ["1", "2", "3", "4", "5", "6"]
    wait_until_drawn(page)
    page.screenshot(path=pictures / "demo.png", full_page=True)


def test_page_type_and_click_finds_the_right_person_first(drawn_page: Any, open_page: OpenPage, known: Any) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    assert labels(page) != known.labels
    page.get_by_label("What does the person look like?").fill(known.sentence)
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#phrase input")).to_have_value(known.phrase)
    expect(page.locator("#crops-0 .caption-label").first).to_have_text(re.compile(r"1 · 0\.\d\d ✓"))
    assert labels(page) == known.labels


def test_page_example_is_copied_and_asked(drawn_page: Any, open_page: OpenPage) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    before = labels(page)
    example = page.locator("button.example").nth(1)
    sentence = example.inner_text()
    example.click()
    expect(page.get_by_label("What does the person look like?")).to_have_value(sentence)
    expect(page.locator("#phrase input")).to_have_value(choose_phrase(split_phrases(sentence)))
    assert labels(page) != before


def test_page_by_keyboard_alone(drawn_page: Any, open_page: OpenPage, known: Any) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)

    def tab_to(selector: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"the Tab key does not reach {selector}")

    opening = page.locator("#heat img").first.get_attribute("src")
    tab_to("#sentence textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type(known.sentence)
    page.keyboard.press("Enter")
    expect(page.locator("#phrase input")).to_have_value(known.phrase)
    expect(page.locator("#crops-0 .caption-label").first).to_contain_text("✓")

    expect(page.locator("#heat img").first).not_to_have_attribute("src", opening)
    heat = page.locator("#heat img").first.get_attribute("src")
    tab_to("#crops-0 .gallery-item:nth-child(2) button")
    page.keyboard.press("Enter")
    expect(page.locator("#heat img").first).not_to_have_attribute("src", heat)

    page.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
    tab_to("#threshold input[type=range]")
    page.keyboard.press("End")
    expect(page.locator("#status-0")).to_contain_text("nobody matches")


def test_page_threshold_says_when_nobody_matches(drawn_page: Any, open_page: OpenPage) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    field = page.locator("#threshold input[type=number]")
    field.fill("0.97")
    field.press("Tab")
    for version in (0, 1):
        expect(page.locator(f"#status-{version}")).to_contain_text("nobody matches. The best image scores")
        expect(page.locator(f"#crops-{version} img")).to_have_count(0)
    field.fill("0.3")
    field.press("Tab")
    expect(page.locator("#status-0")).to_contain_text("best score")
    expect(page.locator("#crops-0 img").first).to_be_visible()
    assert all(float(label.split()[2]) >= 0.3 for label in labels(page))


def test_page_camera_filter_leaves_other_cameras_out(drawn_page: Any, open_page: OpenPage) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    page.get_by_label("camera 2").check()
    for version in (0, 1):
        for position in range(6):
            expect(page.locator(f"#crops-{version} .caption-label").nth(position)).to_contain_text("camera 2")
    page.get_by_label("camera 2").uncheck()
    expect(page.locator("#crops-0 .caption-label", has_text="✓").first).to_be_visible()


def test_page_upload_finds_the_same_image_first(drawn_page: Any, open_page: OpenPage, drawn: Any) -> None:
    crop = drawn.paths[17]  # the page draws the same people
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    page.get_by_role("tab", name="Upload an image").click()
    page.locator("#upload input[type=file]").set_input_files(crop)
    expect(page.locator("#crops-0 .caption-label").first).to_contain_text("1 · 1.00")
    expect(page.locator("#crops-1 .caption-label").first).to_contain_text("1 · 1.00")
    wait_for_answer(page)
    page.get_by_role("button", name=re.compile("clear", re.IGNORECASE)).first.click()
    expect(page.locator("#crops-0 img")).to_have_count(0)


def test_page_upload_of_no_image_says_so(drawn_page: Any, open_page: OpenPage, tmp_path: Path) -> None:
    (tmp_path / "<b>crop.png").write_text("<svg onload='alert(1)'/>", encoding="utf-8")
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    page.get_by_role("tab", name="Upload an image").click()
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "<b>crop.png")
    expect(page.get_by_role("alert").filter(has_text="This file is not a readable image")).to_be_visible()


def test_page_empty_sentence_says_what_to_write(drawn_page: Any, open_page: OpenPage) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    page.get_by_label("What does the person look like?").fill("")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="The query is empty; describe the person")).to_be_visible()


def test_page_phrase_of_ones_own_changes_the_heat_map(drawn_page: Any, open_page: OpenPage) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    before = page.locator("#heat img").first.get_attribute("src")
    page.locator("#phrase input").fill("green hoodie")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator("#heat img").first).not_to_have_attribute("src", before)


def test_page_on_a_telephone_fits_and_shows_the_answer_before_the_filters(
    drawn_page: Any, open_page: OpenPage, pictures: Path
) -> None:
    page = open_page(drawn_page.url, width=360, height=740)
    wait_for_answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tops = [
        page.locator(name).bounding_box()["y"] for name in ("#sentence", "#crops-0", "#crops-1", "#heat", "#filters")
    ]
    assert tops == sorted(tops)
    wait_until_drawn(page)
    page.screenshot(path=pictures / "demo_narrow.png", full_page=True)


def test_page_with_a_folder_shows_names_as_text_and_changes_galleries(folder_page: Any, open_page: OpenPage) -> None:
    page = open_page(folder_page.url)
    expect(page.locator("#summary")).to_have_text("8 images from 2 cameras.")
    expect(page.get_by_label("<u>mine")).to_be_checked()
    page.get_by_label("What does the person look like?").fill("<img src=x onerror=alert(1)> in red")
    page.get_by_label("What does the person look like?").press("Enter")
    wait_for_answer(page)
    assert {label.split("\n")[1] for label in labels(page)} <= {"<b>hall", "yard"}
    page.get_by_label("<b>hall").check()
    expect(page.locator("#crops-0 img")).to_have_count(4)
    expect(page.locator("#status-0 script, #status-0 img, #crops-0 b, #cameras b, #summary u")).to_have_count(0)

    page.get_by_label("Drawn pedestrians").check()
    expect(page.locator("#summary")).to_contain_text("120 images")
    expect(page.locator("button.example").first).to_be_visible()
    expect(page.get_by_label("camera 5")).to_be_visible()
    expect(page.locator("#crops-0 img")).to_have_count(6)


def test_page_two_visitors_at_once_each_see_their_own(drawn_page: Any, open_page: OpenPage, known: Any) -> None:
    first, second = open_page(drawn_page.url), open_page(drawn_page.url)
    sentences = (known.sentence, "a man in a blue jacket")
    for page, sentence in zip((first, second), sentences, strict=True):
        page.get_by_label("What does the person look like?").fill(sentence)
        page.get_by_label("What does the person look like?").press("Enter")
    for page, phrase in ((first, known.phrase), (second, "blue jacket")):
        expect(page.locator("#phrase input")).to_have_value(phrase)
        wait_for_answer(page)
    assert "✓" in labels(first)[0]
    assert not any("✓" in label for label in labels(second))
