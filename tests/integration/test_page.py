"""The page in a browser: what people do with it works, and nothing in the data runs in it."""

import json
import re
import shutil
import zipfile

import pytest
from serve_support import HOSTILE, make_index, serving
from tests_support import picture

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs chromium, Debian's package"),
]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    with serving(make_index(model, tmp_path_factory.mktemp("page"), 200)) as service:
        yield service


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as made:
        options = ["--no-sandbox", "--disable-gpu"]
        yield made.chromium.launch(executable_path=CHROMIUM, args=options)


@pytest.fixture(params=["desktop", "phone"])
def page(request, browser, served):
    """Return the page as it opens; no error and no request to another host may come of a test."""
    is_phone = request.param == "phone"
    context = browser.new_context(
        viewport=PHONE if is_phone else DESKTOP,
        is_mobile=is_phone,
        has_touch=is_phone,
        accept_downloads=True,
        color_scheme="dark" if is_phone else "light",
    )
    made, errors, hosts = context.new_page(), [], set()
    made.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on(
        "request", lambda asked: hosts.add(re.sub(r"^(blob:)?(\w+://[^/]+).*", r"\2", asked.url))
    )
    made.goto(served.url)
    shown(made)
    yield made
    assert errors == []
    assert hosts == {served.url.rstrip("/")}
    assert made.title() != "caught"
    assert fits(made)
    context.close()


def fits(page) -> bool:
    """Return whether nothing is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def shown(page) -> list[str]:
    """Return the names of the pictures that are shown, once they are those that were asked for."""
    page.wait_for_selector("#grid[aria-busy=false]", state="attached")
    page.wait_for_timeout(250)  # what is typed is asked for after 120 ms
    page.wait_for_selector("#grid[aria-busy=false]", state="attached")
    return page.locator("#grid .open").evaluate_all("all => all.map(one => one.ariaLabel)")


def names(found: list[str]) -> list[str]:
    return [one.rpartition(", nearer than")[0] for one in found]


def is_phone(page) -> bool:
    return page.viewport_size["width"] < 700


def test_it_opens_on_pictures_and_fetches_more_as_one_scrolls(page):
    assert len(shown(page)) == 60
    assert page.locator("#summary").inner_text() == "The first 60 of 200 pictures"
    for name in (
        "#text",
        "#choose",
        "#filters-button",
        "#classify-button",
        "#help-button",
        "#sort",
    ):
        expect(page.locator(name)).to_be_visible()
    assert page.locator("#grid img.here").count() > 5
    for _ in range(12):
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(150)
    assert len(shown(page)) == 200


def test_a_screen_that_shows_more_than_the_first_pictures_gets_more(page):
    page.set_viewport_size({"width": 2560, "height": 1440})
    page.reload()
    page.locator(".tile").nth(150).wait_for(state="attached")
    page.set_viewport_size(PHONE)


def test_what_did_not_work_can_be_tried_again(browser, served):
    page = browser.new_page(viewport=DESKTOP)
    for path in ("about", "search"):
        page.route(f"**/{path}", lambda route: route.abort(), times=1)
        page.goto(served.url)
        page.get_by_text("The service does not answer").wait_for()
        page.get_by_role("button", name="Try again").click()
        page.locator(".tile").nth(10).wait_for()
        expect(page.locator("#empty")).to_be_hidden()
    page.close()


def test_results_follow_as_words_are_typed_and_the_address_holds_them(page):
    before = shown(page)
    page.fill("#text", "a red field")
    found = shown(page)
    assert found != before
    assert all("nearer than" in name for name in found)
    page.press("#text", "Enter")
    page.keyboard.type("-a blue field")
    both = shown(page)
    assert both != found
    page.press("#text", "Enter")
    shown(page)
    assert page.locator(".term").count() == 2
    assert page.locator(".term.minus").inner_text() == "− a blue field"
    page.reload()
    assert shown(page) == both
    assert page.locator(".term").count() == 2
    page.click(".term.minus .sign")
    turned = shown(page)
    assert turned != both
    page.go_back()
    assert shown(page) == both
    page.click(".term.minus .off")
    assert shown(page) == found
    page.press("#text", "Backspace")  # takes the words back to be changed
    assert page.input_value("#text") == "a red field"


def test_a_picture_that_is_chosen_dropped_or_pasted_is_searched_by(page):
    file = {"name": "mine.png", "mimeType": "image/png", "buffer": picture("blue", noise=2)}
    page.set_input_files("#file", [file])
    page.wait_for_selector(".term img")
    found = shown(page)
    assert "nearer than" in found[0]
    page.reload()  # the address holds its feature, not the picture
    assert names(shown(page)[:5]) == names(found[:5])
    for event, data in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """async ([event, data]) => {
              const answer = await fetch("/pictures/5/thumbnail");
              const held = new DataTransfer();
              held.items.add(new File([await answer.blob()], "x.jpg", {type: "image/jpeg"}));
              const made = new Event(event, {bubbles: true, cancelable: true});
              Object.defineProperty(made, data, {value: held});
              document.body.dispatchEvent(made);
            }""",
            [event, data],
        )
        page.locator(".term").nth(1).wait_for()
        shown(page)
        page.locator(".term .off").last.click()
        shown(page)


def test_the_slider_keeps_the_best_share_and_sorting_orders_it(page):
    page.fill("#text", "a red field")
    page.press("#text", "Enter")
    shown(page)
    page.locator("#cut").fill("4")  # the best 5 %
    few = shown(page)
    assert page.locator("#cut-name").inner_text() == "Best 5 %"
    assert 5 <= len(few) <= 20
    page.select_option("#sort", "number")
    numbers = [
        int(re.findall(r"number (\d+)", name)[0]) for name in shown(page) if "number" in name
    ]
    assert numbers == sorted(numbers)
    page.locator("#cut").fill("8")
    assert len(shown(page)) < len(few)


def test_filters_leave_pictures_of_their_values(page):
    page.click("#filters-button")
    page.get_by_role("checkbox", name=re.compile(r"^a \(")).check()
    numbers = [
        int(re.findall(r"number (\d+)", name)[0]) for name in shown(page) if "number" in name
    ]
    assert numbers
    assert all(number % 3 == 0 for number in numbers)
    assert page.locator("#filters-count").inner_text() == "1"
    page.get_by_label("number, at least").fill("100")
    page.wait_for_timeout(400)
    numbers = [int(re.findall(r"number (\d+)", name)[0]) for name in shown(page)]
    assert all(number >= 100 and number % 3 == 0 for number in numbers)
    page.reload()
    assert len(shown(page)) == len(numbers)
    page.click("#filters-button")
    page.get_by_role("button", name="Clear all filters").click()
    assert len(shown(page)) == 60


def test_pictures_that_look_alike_are_shown_as_one(page):
    page.fill("#text", "a red field")
    before = shown(page)
    page.click("#filters-button")
    page.get_by_role("checkbox", name="Pictures that look alike as one").check()
    after = shown(page)
    assert after[0] == before[0]
    folded = page.locator(".folded").all_inner_texts()
    assert folded  # random weights find all drawings alike
    assert all(re.fullmatch(r"\+\d+", one) for one in folded)


def test_of_how_many_is_said_only_where_it_is_known(page):
    page.click("#filters-button")
    page.get_by_role("checkbox", name=re.compile(r"^a \(")).check()
    assert len(shown(page)) == 60
    assert page.locator("#summary").inner_text() == "The first 60 that fit"
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.locator(".tile").nth(66).wait_for(state="attached")
    assert page.locator("#summary").inner_text() == "67 of 200 pictures"


def test_nothing_found_is_said_and_led_out_of(page, served):
    page.goto(f"{served.url}?where=" + json.dumps({"lot": ["z"]}))
    assert shown(page) == []
    assert "Nothing found" in page.locator("#empty").inner_text()
    page.get_by_role("button", name="Show all pictures").click()
    assert len(shown(page)) == 60


@pytest.mark.parametrize("kind", ["pictures", "json"])
def test_a_selection_is_downloaded(page, kind, tmp_path):
    boxes = page.locator(".select")
    if not is_phone(page):
        page.hover(".tile >> nth=1")
    boxes.nth(1).check()
    boxes.nth(4).click(modifiers=["Shift"])
    assert page.locator("#selected-count").inner_text() == "4 selected"
    page.fill("#text", "blue")  # a selection outlives the query
    shown(page)
    expect(page.locator("#selection")).to_be_visible()
    with page.expect_download() as waiting:
        page.click("#download summary")
        page.click(f"#download [data-kind={kind}]")
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    if kind == "pictures":
        with zipfile.ZipFile(path) as file:
            assert len(file.namelist()) == 4
    else:
        assert [one["id"] for one in json.loads(path.read_text())] == [1, 2, 3, 4]
    page.click("#clear")
    expect(page.locator("#selection")).to_be_hidden()


def test_a_picture_is_looked_at_closely_and_more_like_it_are_found(page):
    page.locator(".open").nth(2).click()
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    assert "number 2" in viewer.locator("h2").inner_text()
    assert "lot" in viewer.inner_text()
    page.keyboard.press("ArrowRight")
    assert "number 3" in viewer.locator("h2").inner_text()
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    page.go_back()
    expect(viewer).to_be_visible()
    viewer.get_by_role("button", name="More like this").click()
    expect(viewer).to_be_hidden()
    assert shown(page)[0].startswith("a ")
    assert page.locator(".term img").count() == 1


def test_a_finger_need_not_hit_the_small_mark_to_select(page):
    if not is_phone(page):
        pytest.skip("without a finger")
    mark = page.locator(".select").nth(1).bounding_box()
    page.touchscreen.tap(mark["x"] + mark["width"] + 7, mark["y"] + mark["height"] + 7)
    assert page.locator("#selected-count").inner_text() == "1 selected"
    expect(page.locator("#viewer")).to_be_hidden()


def test_a_swipe_turns_to_the_next_picture(page):
    if not is_phone(page):
        pytest.skip("without a finger")
    page.locator(".open").nth(2).click()
    touch = page.context.new_cdp_session(page)
    for start, end, number in ((300, 80, 3), (80, 300, 2), (200, 190, 2)):
        for kind, x in (("touchStart", start), ("touchMove", end), ("touchEnd", None)):
            points = [] if x is None else [{"x": x, "y": 300}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.locator(f"#viewer h2:has-text('number {number}')").wait_for()


def test_names_are_given_to_a_picture_as_they_are_written(page):
    page.click("#classify-button")
    image = {"name": "x.png", "mimeType": "image/png", "buffer": picture("green")}
    page.set_input_files("#classify input[type=file]", [image])
    page.fill("#names", "red\ngreen\n<b>blue</b>")
    page.locator("#answers").get_by_text("<b>blue</b>").wait_for()
    answers = page.locator("#answers li").all_inner_texts()
    assert any("<b>blue</b>" in answer for answer in answers)
    shares = [float(re.findall(r"([\d.]+) %", answer)[0]) for answer in answers]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    page.fill("#names", "")
    page.wait_for_selector("#classify .error")
    assert "Write a name" in page.locator("#classify .error").inner_text()
    page.keyboard.press("Escape")
    expect(page.locator("#classify")).to_be_hidden()


def test_naming_follows_from_picture_to_picture_and_ends_with_the_viewer(page):
    page.locator(".open").nth(2).click()
    page.keyboard.press("n")
    panel = page.locator("#classify")
    expect(panel).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(panel).to_be_visible()
    assert page.locator("#classify-subject img").get_attribute("src") == "/pictures/3/thumbnail"
    page.locator("#names").focus()
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    expect(page.locator("#viewer")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "name-this"
    page.keyboard.press("n")
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    page.keyboard.press("n")
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    assert page.get_attribute("#classify-button", "aria-expanded") == "false"


def test_nothing_in_captions_and_metadata_runs(page):
    assert shown(page)[0] == HOSTILE
    page.locator(".open").first.click()
    assert page.locator("#viewer h2").inner_text() == HOSTILE
    page.get_by_role("button", name="More like this").click()
    shown(page)
    page.click("#filters-button")
    page.fill("#text", HOSTILE)
    page.press("#text", "Enter")
    shown(page)
    assert page.locator("img[onerror]").count() == 0
    assert page.title() != "caught"


def test_everything_can_be_done_with_the_keyboard(page):
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+Space")
    columns = page.evaluate(
        "getComputedStyle(document.getElementById('grid')).gridTemplateColumns.split(' ').length"
    )
    assert page.locator("#selected-count").inner_text() == f"{columns + 1} selected"
    page.keyboard.press("Escape")
    expect(page.locator("#selection")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "open"  # where one was
    page.keyboard.press("f")
    expect(page.locator("#filters")).to_be_visible()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    expect(page.locator("#classify")).to_be_visible()


def test_axe_finds_no_serious_fault(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check():
        found = axe.run(page).response["violations"]
        serious = [
            (one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"][:300])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []

    check()
    page.fill("#text", "red")
    page.press("#text", "Enter")
    page.keyboard.type("-blue")
    page.press("#text", "Enter")
    page.click("#filters-button")
    shown(page)
    page.locator(".select").first.check(force=True)
    page.wait_for_timeout(400)
    check()
    page.click("#classify-button")
    page.wait_for_timeout(400)
    check()
    page.keyboard.press("Escape")
    page.locator(".open").nth(1).click()
    page.wait_for_timeout(400)
    check()
    page.keyboard.press("Escape")
    page.click("#help-button")
    check()
    page.goto(re.sub(r"(//[^/]+/).*", r"\1docs", page.url))
    page.wait_for_selector("section")
    check()


def test_a_page_without_the_token_asks_for_it(model, browser, tmp_path):
    token = "a-token-of-this-test"
    with serving(make_index(model, tmp_path, 8), token=token) as served:
        page = browser.new_page()
        page.goto(served.url)
        page.wait_for_selector("#token-dialog[open]")
        page.fill("#token", "wrong")
        page.press("#token", "Enter")
        page.get_by_text("That is another token").wait_for()
        page.fill("#token", token)
        page.press("#token", "Enter")
        page.wait_for_selector("#grid img")
        assert token not in page.url
        page.close()
