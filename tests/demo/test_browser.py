"""The page in a real Chromium, as a visitor uses it.

Screenshots are written to the folder that `PICTURES` names (`make test-browser PICTURES=docs/pictures`), else to a
temporary one.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from promptreid import Gallery
from promptreid.demo.answers import NUM_SHOWN
from promptreid.demo.sources import DRAWN_EXAMPLES

playwright_api = pytest.importorskip("playwright.sync_api")
if find_spec("gradio") is None:  # imported by those tests alone that run
    pytest.skip("gradio is not installed", allow_module_level=True)
expect: Any = playwright_api.expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PATIENCE_MS = 20_000

OpenPage = Callable[..., Any]
Picture = Callable[[str], Path]


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

    def open_one(url: str, *, width: int = 1280, height: int = 900, scheme: str = "light", ready: bool = True) -> Any:
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            permissions=["clipboard-read", "clipboard-write"],
        )
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
        if not ready:
            return page
        expect(page.get_by_role("heading", name="Find a person by description")).to_be_visible()
        return page

    open_one.faults = faults  # pyright: ignore[reportFunctionMemberAccess]
    yield open_one
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def pictures(tmp_path: Path) -> Picture:
    """Where a screenshot goes: those that the documentation shows into the folder of pictures."""
    folder = Path(os.environ.get("PICTURES") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    text = (Path(__file__).parents[2] / "docs" / "demo.md").read_text(encoding="utf-8")
    return lambda name: (folder if f"pictures/{name}" in text else tmp_path) / name


def labels(page: Any, version: int = 0) -> list[str]:
    """What stands below the images of a version."""
    return page.locator(f"#crops-{version} .caption-label").all_inner_texts()


def wait_for_answer(page: Any, count: int = NUM_SHOWN) -> None:
    expect(page.locator("#crops-0 img")).to_have_count(count)


def search(page: Any, sentence: str) -> None:
    """Type a sentence and press Enter."""
    page.get_by_label("What does the person look like?").fill(sentence)
    page.get_by_label("What does the person look like?").press("Enter")


def wait_until_drawn(page: Any) -> None:
    """Until every image has arrived; those far down are loaded when they are scrolled to."""
    for image in page.locator("img:visible").all():
        image.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    page.evaluate("window.scrollTo(0, 0)")


def enlarge(page: Any, rank: int) -> None:
    """Click an image, and wait until it is shown large."""
    page.locator(f"#crops-0 .gallery-item:nth-child({rank}) button").click()
    expect(page.locator("#large img")).to_be_visible()
    expect(page.locator("#close")).to_be_focused()


def test_page_opens_with_an_example_answered_by_the_adapted_model_alone(drawn_page: Any, open_page: OpenPage) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    expect(page.locator("#title")).to_contain_text("120 images, 5 cameras, 3 days. Drawings of 30 invented people")
    expect(page.locator("#status-0")).to_contain_text("Best score")
    opened_with = page.get_by_label("What does the person look like?").input_value()
    assert opened_with == page.locator("button.example").first.inner_text() == "a man in a green jacket"
    assert [label.split(" · ")[0] for label in labels(page)] == [str(1 + rank) for rank in range(NUM_SHOWN)]
    assert sum("✓" in label for label in labels(page)) >= 6
    expect(page.locator("#crops-1, #large, #heat")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_page_fills_its_width_and_overflows_nowhere(
    drawn_page: Any, open_page: OpenPage, pictures: Picture, width: int, scheme: str
) -> None:
    page = open_page(drawn_page.url, width=width, height=900, scheme=scheme)
    wait_for_answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    grid = page.locator("#crops-0 .grid-container").bounding_box()
    right = page.locator("#crops-0 .gallery-item:nth-child(3)").bounding_box()
    if width > 1000:  # beside the filters, six in a row, to the edge
        assert page.locator("#filters").bounding_box()["x"] < grid["x"]
        right = page.locator("#crops-0 .gallery-item:nth-child(6)").bounding_box()
        assert grid["width"] > 0.65 * width
    else:
        assert grid["width"] > 0.85 * width
    assert right["x"] + right["width"] == pytest.approx(grid["x"] + grid["width"], abs=12)
    assert right["y"] == page.locator("#crops-0 .gallery-item:nth-child(1)").bounding_box()["y"]
    wait_until_drawn(page)
    page.screenshot(path=pictures(f"demo_{width}_{scheme}.png"), full_page=True)
    enlarge(page, 3)
    box = page.locator("#detail").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert page.locator("#large img").bounding_box()["height"] > 300
    page.wait_for_function("document.querySelector('#large img').naturalWidth > 0")
    # The path of this machine is nobody's business.
    page.evaluate("area => area.value = area.value.replace(/.*\\//, 'crops/')", page.query_selector("#path textarea"))
    page.screenshot(path=pictures(f"demo_enlarged_{width}_{scheme}.png"))


def test_page_type_and_click_finds_the_right_person_first(drawn_page: Any, open_page: OpenPage, known: Any) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    assert labels(page) != known.labels
    page.get_by_label("What does the person look like?").fill(known.sentence)
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#crops-0 .caption-label").first).to_have_text(re.compile(re.escape(known.labels[0][:8])))
    page.wait_for_timeout(500)
    assert labels(page) == known.labels


def test_page_example_is_copied_and_asked(drawn_page: Any, open_page: OpenPage) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    before = labels(page)
    example = page.locator("button.example").nth(1)
    sentence = example.inner_text()
    example.click()
    expect(page.get_by_label("What does the person look like?")).to_have_value(sentence)
    expect(page.locator("#crops-0 .caption-label").first).not_to_have_text(before[0])


def test_page_by_keyboard_reaches_the_results_before_the_filters(drawn_page: Any, open_page: OpenPage) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    passed: list[str] = []

    def tab_to(selector: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            where = "element => element.closest('#question, #answer, #filters')?.id"
            passed.append(page.evaluate(f"({where})(document.activeElement)"))
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"the Tab key does not reach {selector}")

    tab_to("#sentence textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type(DRAWN_EXAMPLES[1])
    page.keyboard.press("Enter")
    expect(page.locator("#crops-0 .caption-label").first).to_contain_text("✓")

    tab_to("#crops-0 .gallery-item:nth-child(2) button")
    assert "filters" not in passed
    page.keyboard.press("Enter")
    expect(page.locator("#large img")).to_be_visible()
    expect(page.locator("#close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_have_count(0)
    expect(page.locator("#crops-0 .gallery-item:nth-child(2) button")).to_be_focused()

    tab_to("#threshold input[type=range]")
    page.keyboard.press("End")
    expect(page.locator("#status-0")).to_contain_text("No image scores")


def test_page_enlarges_with_name_camera_and_a_path_to_copy(
    drawn_page: Any, open_page: OpenPage, pictures: Picture
) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    enlarge(page, 3)
    facts = page.locator("#facts").inner_text()
    assert re.search(r"Name\s+\d{5}_\d\.jpg", facts)
    assert labels(page)[2].split("\n")[1] in facts
    page.locator("#copy").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    path = page.evaluate("navigator.clipboard.readText()")
    assert path == page.locator("#path textarea").input_value()
    assert Path(path).is_file()
    page.locator("#close").click()
    expect(page.locator("#detail")).to_have_count(0)


def test_page_shows_the_heat_map_on_request(drawn_page: Any, open_page: OpenPage, pictures: Picture) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    enlarge(page, 3)
    page.locator("#where button").first.click()
    expect(page.locator("#phrase input")).to_have_value("green jacket")
    expect(page.locator("#heat img")).to_have_count(0)
    page.locator("#show-heat").click()
    expect(page.locator("#heat img")).to_have_count(1)
    before = page.locator("#heat img").get_attribute("src")
    page.wait_for_timeout(300)
    page.screenshot(path=pictures("demo_heat.png"))
    page.locator("#phrase input").fill("grey trousers")
    page.locator("#show-heat").click()
    expect(page.locator("#heat img")).not_to_have_attribute("src", before)


def test_page_shows_the_bare_model_on_request(drawn_page: Any, open_page: OpenPage, pictures: Picture) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    page.locator("#compare input").check()
    expect(page.locator("#status-1")).to_contain_text("Bare model: best score")
    expect(page.locator("#status-0")).to_contain_text("Adapted model: best score")
    expect(page.locator("#crops-1 img")).to_have_count(NUM_SHOWN)
    adapted, bare = (sum("✓" in label for label in labels(page, version)) for version in (0, 1))
    assert adapted > bare
    wait_until_drawn(page)
    page.screenshot(path=pictures("demo_compared.png"), full_page=True)
    page.locator("#compare input").uncheck()
    expect(page.locator("#crops-1")).to_have_count(0)


def test_page_threshold_is_scaled_to_the_scores_and_says_when_no_image_reaches_it(
    drawn_page: Any, open_page: OpenPage
) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    scores = [float(label.split()[2]) for label in labels(page)]
    slider, field = page.locator("#threshold input[type=range]"), page.locator("#threshold input[type=number]")
    lowest, highest = (float(slider.get_attribute(end)) for end in ("min", "max"))
    assert -1 < lowest < min(scores) < max(scores) < highest < 1
    field.fill(str(highest))
    field.press("Tab")
    expect(page.locator("#status-0")).to_contain_text(f"No image scores {highest:.2f} or more; the best scores")
    expect(page.locator("#crops-0 img")).to_have_count(0)
    field.fill(str(scores[2]))
    field.press("Tab")
    expect(page.locator("#status-0")).to_contain_text(f"reach {scores[2]:.2f}")
    expect(page.locator("#crops-0 img").first).to_be_visible()
    assert all(float(label.split()[2]) >= scores[2] for label in labels(page))


def test_page_filters_by_camera_and_by_day(drawn_page: Any, open_page: OpenPage) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    page.get_by_label("camera 2").check()
    expect(page.locator("#crops-0 .caption-label", has_text="camera 2")).to_have_count(NUM_SHOWN)
    page.get_by_label("2026-11-24").check()
    expect(page.locator("#crops-0 .caption-label", has_not_text="2026-11-24")).to_have_count(0)
    expect(page.locator("#crops-0 .caption-label", has_text="camera 2").first).to_be_visible()
    page.get_by_label("camera 2").uncheck()
    expect(page.locator("#crops-0 .caption-label", has_not_text="camera 2").first).to_be_visible()
    assert all("2026-11-24" in label for label in labels(page))


def test_page_upload_finds_the_same_image_first(drawn_page: Any, open_page: OpenPage, drawn: Any) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    page.get_by_role("tab", name="Search by an image").click()
    page.locator("#upload input[type=file]").set_input_files(drawn.gallery.paths[17])  # the page draws the same people
    expect(page.locator("#crops-0 .caption-label").first).to_contain_text("1 · 1.00")
    wait_for_answer(page)
    page.get_by_role("button", name=re.compile("clear", re.IGNORECASE)).first.click()
    expect(page.locator("#crops-0 img")).to_have_count(0)


def test_page_upload_of_no_image_says_so(drawn_page: Any, open_page: OpenPage, tmp_path: Path) -> None:
    (tmp_path / "<b>crop.png").write_text("<svg onload='alert(1)'/>", encoding="utf-8")
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    page.get_by_role("tab", name="Search by an image").click()
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "<b>crop.png")
    expect(page.get_by_role("alert").filter(has_text="This file is not a readable image")).to_be_visible()


def test_page_empty_sentence_says_what_to_write(drawn_page: Any, open_page: OpenPage) -> None:
    page = open_page(drawn_page.url)
    wait_for_answer(page)
    search(page, "")
    expect(page.get_by_role("alert").filter(has_text="The query is empty; describe the person")).to_be_visible()


def test_page_with_an_index_shows_names_as_text_and_forgets_for_good(
    serve: Callable[..., Any],
    hostile_folder: Path,
    shipped: Any,
    tmp_path: Path,
    open_page: OpenPage,
    pictures: Picture,
) -> None:
    Gallery.build(shipped, hostile_folder, progress=False).save(tmp_path / "index")
    page = open_page(serve(str(tmp_path / "index")).url)
    expect(page.locator("#title")).to_contain_text("index: 8 images, 2 cameras.")
    expect(page.locator("#status-0")).to_contain_text("8 images are ready")
    search(page, "<img src=x onerror=alert(1)> in red")
    wait_for_answer(page, 8)
    assert {label.split("\n")[1] for label in labels(page)} <= {"<b>hall", "yard"}
    page.get_by_label("<b>hall").check()
    wait_for_answer(page, 4)
    enlarge(page, 1)
    expect(page.locator("#facts")).to_contain_text("<img src=x onerror=alert(1)>")
    name = page.locator("#facts td").first.inner_text()
    page.locator("#forget button").first.click()
    page.locator("#find").click()
    expect(page.locator("#alike img")).to_have_count(8)
    assert page.locator("#ticked input:checked").count() == 1
    page.screenshot(path=pictures("demo_forget.png"))
    page.locator("#remove").click()
    expect(page.locator("#receipt textarea")).to_be_visible()
    receipt = page.locator("#receipt textarea").input_value()
    assert re.match(r"Removed 1 image from index on 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\+00:00\.", receipt)
    assert name in receipt
    wait_for_answer(page, 3)
    expect(page.locator("#status-0 script, #status-0 img, #crops-0 b, #cameras b, #facts img, #title u")).to_have_count(
        0
    )
    loaded = Gallery.load(tmp_path / "index", shipped)
    assert len(loaded) == 7
    assert name in loaded.update(hostile_folder, progress=False).excluded[0]


@pytest.mark.skipif(find_spec("lancedb") is None, reason="needs the extra store")
def test_page_on_a_store_is_searched_filtered_and_erased_from(
    serve: Callable[..., Any], hostile_folder: Path, shipped: Any, tmp_path: Path, open_page: OpenPage
) -> None:
    from promptreid.retrieval.stored_gallery import StoredGallery

    url = str(tmp_path / "people")
    subprocess.run([sys.executable, "-m", "promptreid", "index", str(hostile_folder), "--store", url], check=True)
    page = open_page(serve(url, command=True).url)
    expect(page.locator("#title")).to_contain_text("people: 8 images, 2 cameras.")
    search(page, "a man in red")
    wait_for_answer(page, 8)
    wait_until_drawn(page)
    page.get_by_label("yard").check()
    wait_for_answer(page, 4)
    enlarge(page, 1)
    name = page.locator("#facts td").first.inner_text()
    page.locator("#forget button").first.click()
    page.locator("#find").click()
    expect(page.locator("#alike img")).to_have_count(8)
    page.locator("#remove").click()
    expect(page.locator("#receipt textarea")).to_be_visible()
    assert name in page.locator("#receipt textarea").input_value()
    wait_for_answer(page, 3)
    assert len(StoredGallery.load(url, shipped)) == 7


def test_page_with_a_password_asks_for_it(serve: Callable[..., Any], hostile_folder: Path, open_page: OpenPage) -> None:
    page = open_page(serve(str(hostile_folder), "--auth").url, ready=False)
    expect(page.get_by_label(re.compile("username", re.IGNORECASE))).to_be_visible()
    expect(page.locator("#crops-0")).to_have_count(0)
    page.get_by_label(re.compile("username", re.IGNORECASE)).fill("anna")
    page.get_by_label(re.compile("password", re.IGNORECASE)).fill("correct horse")
    page.get_by_role("button", name=re.compile("log ?in", re.IGNORECASE)).click()
    expect(page.locator("#title")).to_contain_text("8 images")
    search(page, "someone in red")
    wait_for_answer(page, 8)
    open_page.faults[:] = [fault for fault in open_page.faults if "401" not in fault]  # pyright: ignore


def test_page_two_visitors_at_once_each_see_their_own(drawn_page: Any, open_page: OpenPage) -> None:
    first, second = open_page(drawn_page.url), open_page(drawn_page.url)
    for page, sentence in ((first, DRAWN_EXAMPLES[1]), (second, "zebra crossing")):
        search(page, sentence)
    expect(first.locator("#crops-0 .caption-label").first).to_contain_text("✓")
    expect(second.locator("#crops-0 .caption-label", has_text="✓")).to_have_count(0)
    expect(first.locator("#crops-0 .caption-label", has_text="✓").first).to_be_visible()
