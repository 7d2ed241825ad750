"""The Compare screen in real Chromium, at the size of a desktop and of a phone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import app_server
import pytest
import uvicorn

from visfeedback.app import server
from visfeedback.app.choosing import Asking
from visfeedback.app.context import Context

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
SHOWN = "visfeedback-compare .frame img"
PROMPT = "visfeedback-compare .prompt"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[str, Context]]]:
    """``url, context = serve(Asking(kind="best"), title="...")``: a server in a thread."""
    running: list[Any] = []

    def start(asking: Asking | None = None, prompts: int = 4, each: int = 4, **settings: Any) -> tuple[str, Context]:
        url = f"sqlite:///{tmp_path}/p.db"
        if prompts:
            app_server.fill(url, tmp_path / "images", asking, prompts=prompts, each=each, side=96)
        opened = app_server.context(url, **settings)
        context = opened.__enter__()
        bound = server.listen("127.0.0.1", 0)
        running_server = uvicorn.Server(
            uvicorn.Config(
                server.application(context, tabs=()), log_level="error", lifespan="on", timeout_graceful_shutdown=1
            )
        )
        thread = threading.Thread(target=running_server.run, args=([bound],), daemon=True)
        thread.start()
        running.append((running_server, thread, opened))
        app_server.until(lambda: running_server.started)
        return f"http://127.0.0.1:{bound.getsockname()[1]}", context

    yield start
    for running_server, thread, opened in running:
        running_server.should_exit = True
        thread.join(timeout=20)
        opened.__exit__(None, None, None)


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """``page = visit(url, PHONE)``; at the end nobody may have complained in the console."""
    complaints: list[str] = []
    made: list[Any] = []

    def go(url: str, size: dict[str, int] = DESKTOP, browser: Any = None, **more: Any) -> Any:
        if browser is None:
            browser = chromium.new_context(viewport=size, has_touch=size is PHONE, **more)
            made.append(browser)
        page = browser.new_page()
        page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "requestfailed",
            lambda request: complaints.append(request.url) if "ABORTED" not in request.failure else None,
        )
        page.goto(url)
        return page

    yield go
    for browser in made:
        browser.close()
    assert complaints == []


def answered(context: Context, count: int) -> list[Any]:
    """The standing feedback, once there is as much as expected; more is wrong as well."""
    app_server.until(lambda: len(list(context.store.feedback())) >= count)
    found = list(context.store.feedback())
    assert len(found) == count
    return found


def overflow(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


@SIZES
def test_all_is_on_one_screen(size: dict[str, int], serve: Any, visit: Any) -> None:
    """Both images and the four answers are inside the window without scrolling, the images not small."""
    url, _ = serve()
    page = visit(url + "/compare", size)
    page.wait_for_selector(SHOWN)
    for place in [*page.locator(SHOWN).all(), *page.locator(".answers button").all()]:
        box = place.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= size["height"]
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size["width"]
    assert page.locator(SHOWN).first.bounding_box()["width"] > 200
    assert not overflow(page)


FRAMES = """() => new Promise((done) => {
    let left = 4;
    const next = () => (left-- ? requestAnimationFrame(next) : done());
    next();
})"""


@SIZES
def test_every_key_is_its_answer(size: dict[str, int], serve: Any, visit: Any) -> None:
    """Nine keys, nine answers; left and right become a and b by the side that each image had."""
    url, context = serve()
    page = visit(url + "/compare", size)
    page.wait_for_selector(SHOWN)
    for count, key in enumerate(["1", "2", "ArrowLeft", "ArrowRight", "t", "b", "s", "f", "T"], 1):
        page.evaluate(FRAMES)  # who answers before anything is painted has taken no time to look
        page.keyboard.press(key)
        answered(context, count)
    records = list(context.store.feedback())
    sides = [record.sides[0] if record.choice == "a" else record.sides[1] for record in records[:4]]
    assert sides == [0, 1, 0, 1]
    assert [record.choice for record in records[4:]] == ["tie", "both_bad", "skip", "flag", "tie"]
    assert all(record.seconds is not None for record in records)


def test_five_fast_presses_are_five_votes(serve: Any, visit: Any) -> None:
    url, context = serve()
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    app_server.until(lambda: page.evaluate("document.querySelector('visfeedback-compare').talk.line.ready.length") >= 4)
    for _ in range(5):
        page.keyboard.press("1")
    records = answered(context, 5)
    assert len({frozenset(record.sample_ids) for record in records}) == 5


def test_a_held_key_is_one_vote(serve: Any, visit: Any) -> None:
    url, context = serve()
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    page.keyboard.down("1")
    for _ in range(5):
        page.keyboard.down("1")  # a repeat, as the keyboard sends it
    page.keyboard.up("1")
    answered(context, 1)


def test_keys_that_are_typed_or_meant_for_the_browser_are_no_votes(serve: Any, visit: Any) -> None:
    url, context = serve(ask_note=True)
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    page.fill("textarea", "12 bts")
    page.focus("textarea")
    page.keyboard.type("12tbsz")
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.shadowRoot?.activeElement?.blur()")
    page.keyboard.press("Control+b")
    page.keyboard.press("1")
    [record] = answered(context, 1)
    assert record.note == "12 bts12tbsz"


def test_two_tabs_never_cast_one_pair_twice(serve: Any, visit: Any, chromium: Any) -> None:
    """Both tabs begin with the same pair. Keys in both as fast as they go, until all is answered: 12 votes."""
    url, context = serve(prompts=2)
    browser = chromium.new_context(viewport=DESKTOP)
    tabs = [browser.new_page() for _ in range(2)]
    for tab in tabs:
        tab.goto(url + "/compare")
        tab.wait_for_selector(SHOWN)
    assert tabs[0].inner_text(PROMPT) == tabs[1].inner_text(PROMPT)
    for _ in range(60):
        tabs[0].keyboard.press("1")
        tabs[1].keyboard.press("2")
        if len(list(context.store.feedback())) == 12:
            break
        tabs[0].wait_for_timeout(30)
    records = answered(context, 12)
    assert len({frozenset(record.sample_ids) for record in records}) == 12
    browser.close()


def test_another_tab_drops_what_was_answered(serve: Any, visit: Any, chromium: Any) -> None:
    url, context = serve()
    browser = chromium.new_context(viewport=DESKTOP)
    first, second = (visit(url + "/compare", browser=browser) for _ in range(2))
    for tab in (first, second):
        tab.wait_for_selector(SHOWN)
    before = second.locator(SHOWN).first.get_attribute("src")
    first.keyboard.press("1")
    said = "document.querySelector('visfeedback-compare').lastSaid"
    app_server.until(lambda: second.evaluate(said) == "Answered in another tab.")
    assert second.locator(SHOWN).first.get_attribute("src") != before
    second.keyboard.press("2")
    answered(context, 2)
    browser.close()


def test_undo_shows_the_pair_again(serve: Any, visit: Any) -> None:
    url, context = serve()
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    first = page.inner_text(PROMPT), pixels(page)
    page.keyboard.press("1")
    [vote] = answered(context, 1)
    assert (page.inner_text(PROMPT), pixels(page)) != first
    page.keyboard.press("z")
    app_server.until(lambda: not list(context.store.feedback()))
    app_server.until(lambda: (page.inner_text(PROMPT), pixels(page)) == first)
    page.keyboard.press("t")
    [record] = answered(context, 1)
    assert record.sample_ids == vote.sample_ids
    app_server.until(lambda: page.evaluate("document.querySelector('visfeedback-compare').talk.numbers.mine") == 1)


def pixels(page: Any) -> list[list[int]]:
    """The corner of each image, which tells them apart."""
    return page.locator(SHOWN).evaluate_all(
        """all => all.map(one => {
            const canvas = new OffscreenCanvas(1, 1).getContext("2d");
            canvas.drawImage(one, 0, 0);
            return [...canvas.getImageData(0, 0, 1, 1).data];
        })"""
    )


def test_a_reload_goes_on_where_one_was(serve: Any, visit: Any) -> None:
    url, context = serve()
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    page.keyboard.press("1")
    answered(context, 1)
    source = page.locator(SHOWN).first.get_attribute("src")
    page.reload()
    page.wait_for_selector(SHOWN)
    assert page.locator(SHOWN).first.get_attribute("src") == source
    assert page.inner_text(".progress").endswith("1 by you")


@SIZES
def test_it_works_inside_gradio(size: dict[str, int], serve: Any, visit: Any) -> None:
    url, context = serve(tabs=True)
    page = visit(url, size)
    page.wait_for_selector(SHOWN)
    page.keyboard.press("1")
    answered(context, 1)
    for button in page.locator("visfeedback-compare .answers button").all():
        box = button.bounding_box()
        assert box["y"] + box["height"] <= size["height"]  # the bar sticks
    assert not overflow(page)
    screen, tabs = page.locator("visfeedback-compare").bounding_box(), page.get_by_role("tablist").first.bounding_box()
    # without margins of Gradio: 12 px beside the screen on a phone; elsewhere 84rem with 2rem inside, in the middle
    assert screen["x"] <= (16 if size is PHONE else 80) and screen["y"] - tabs["y"] - tabs["height"] <= 30


def test_dark_mode_follows_the_system(serve: Any, visit: Any) -> None:
    url, _ = serve()
    grounds = []
    for scheme in ("light", "dark"):
        page = visit(url + "/compare", color_scheme=scheme)
        page.wait_for_selector(SHOWN)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.get_attribute("visfeedback-compare", "theme") == scheme
    assert grounds == ["rgb(250, 249, 247)", "rgb(20, 20, 19)"]


def test_names_for_those_who_do_not_see(serve: Any, visit: Any) -> None:
    """Every image and control has words; Tab goes through the answers before the tools; the news are announced."""
    url, context = serve()
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    prompt = page.inner_text(PROMPT)
    assert [image.get_attribute("alt") for image in page.locator(SHOWN).all()] == [
        f"Image {number} drawn for: {prompt}" for number in (1, 2)
    ]
    assert all(
        page.locator("visfeedback-compare button").evaluate_all(
            "all => all.map(one => one.innerText.trim() || one.ariaLabel)"
        )
    )
    order = []
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate("document.querySelector('visfeedback-compare').shadowRoot.activeElement.dataset.key")
        )
    assert order == ["1", "t", "b", "2", "s", "f"]
    page.keyboard.press("t")
    answered(context, 1)
    app_server.until(lambda: page.inner_text("[aria-live=polite]").startswith("Tie."))


MODES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "best": (["3"], {"values": 1.0}),
    "ranking": (["2", "1", "e", "4", "Enter"], {}),
    "rating": (["5", "4", "3", "1", "Enter"], {}),
    "like": (["l"], {"values": (1.0,)}),
    "words": (["Enter"], {"words": ()}),
    "region": (["a", "Enter"], {}),
}


@SIZES
@pytest.mark.parametrize("kind", MODES)
def test_other_modes_by_keys(kind: Any, size: dict[str, int], serve: Any, visit: Any) -> None:
    url, context = serve(Asking(kind=kind, repeats=0), prompts=2, each=4)
    page = visit(url + "/compare", size)
    page.wait_for_selector(SHOWN)
    shown = context.desk
    for key in MODES[kind][0]:
        page.keyboard.press(key)
    [record] = answered(context, 1)
    by_side = [record.values[record.sides.index(side)] for side in range(len(record.sides))] if record.values else []
    wanted = {
        "best": [0, 0, 1, 0], "ranking": [1, 0, 3, 1], "rating": [5, 4, 3, 1], "like": [1], "words": [], "region": [],
    }  # fmt: skip
    assert shown.project == "default"
    assert by_side == wanted[kind]
    if kind == "region":
        assert [(region.width, region.label) for region in record.regions] == [(0.2, "artifact")]
    assert not overflow(page)


def test_many_images_leave_room_for_themselves(serve: Any, visit: Any) -> None:
    """Nine images on a phone: the bar is in sight, no taller than two rows of short buttons, which say what they do."""
    url, context = serve(Asking(kind="best", group=9, repeats=0), prompts=1, each=9)
    page = visit(url + "/compare", PHONE)
    page.wait_for_selector(SHOWN)
    bar = page.locator(".dock").bounding_box()
    assert bar["y"] + bar["height"] <= PHONE["height"] and bar["height"] < 200
    page.get_by_role("button", name="7 is best").click()
    [record] = answered(context, 1)
    assert record.values[record.sides.index(6)] == 1


def test_regions_are_shares_of_the_picture(serve: Any, visit: Any) -> None:
    """A drag from a quarter to three quarters of the picture is a box of a half, to a pixel."""
    url, context = serve(Asking(kind="region", repeats=0), prompts=1, each=1)
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    box = page.locator(SHOWN).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 3 / 4, box["y"] + box["height"] * 3 / 4, steps=4)
    page.mouse.up()
    page.keyboard.press("Enter")
    [record] = answered(context, 1)
    [region] = record.regions
    for value, wanted in [(region.x, 0.25), (region.y, 0.25), (region.width, 0.5), (region.height, 0.5)]:
        assert abs(value - wanted) < 0.01


def test_words_and_texts(serve: Any, visit: Any) -> None:
    """The words of "a picture of 0 things & <b>more</b>": markup in a prompt is words, never elements."""
    url, context = serve(Asking(kind="words", repeats=0), prompts=1, each=1)
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    assert page.locator(".word").all_inner_texts() == ["a", "picture", "of", "0", "things", "&", "<b>more</b>"]
    page.locator(".word").nth(3).click()
    page.locator(".word").nth(1).click()
    page.keyboard.press("Enter")
    [record] = answered(context, 1)
    assert record.words == (1, 3)


def test_zoom_moves_both_images_and_the_slider_cuts(serve: Any, visit: Any) -> None:
    url, context = serve()
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    page.keyboard.press("+")
    transforms = page.locator(SHOWN).evaluate_all("all => all.map(one => one.style.transform)")
    assert transforms[0] == transforms[1] != ""
    page.keyboard.press("0")
    page.keyboard.press("v")
    clip = page.locator(".sliding .top").evaluate("one => one.style.clipPath")
    page.keyboard.press("ArrowRight")
    assert clip == "inset(0px 50% 0px 0px)"
    assert page.locator(".sliding .top").evaluate("one => one.style.clipPath") != clip
    page.keyboard.press("v")  # the divider has the focus, and only the arrows are its own
    assert page.locator(".sliding").count() == 0
    page.keyboard.press("v")
    page.keyboard.press("2")
    [record] = answered(context, 1)
    assert record.sides[0 if record.choice == "a" else 1] == 1


def test_the_welcome_asks_for_consent(serve: Any, visit: Any) -> None:
    url, context = serve(consent="Votes are published.", invitation="Help us.", instructions="Look at the hands.")
    page = visit(url + "/compare")
    start = page.get_by_role("button", name="I agree and want to start")
    start.wait_for()
    assert start.is_disabled()
    page.keyboard.press("Enter")
    page.get_by_label("I have read this and agree").check()
    start.click()
    page.wait_for_selector(SHOWN)
    page.keyboard.press("1")
    answered(context, 1)


def test_blurred_images_wait_to_be_shown(serve: Any, visit: Any) -> None:
    url, context = serve(blur=True)
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    assert "blur" in page.locator(SHOWN).first.evaluate("one => getComputedStyle(one).filter")
    page.keyboard.press("1")  # nobody can tell yet
    assert page.locator(".answers").evaluate("one => one.inert")
    page.keyboard.press("x")
    assert not page.locator(".answers").evaluate("one => one.inert")
    assert page.locator(SHOWN).first.evaluate("one => getComputedStyle(one).filter") == "none"
    page.keyboard.press("2")
    [record] = answered(context, 1)
    assert record.sides[0 if record.choice == "a" else 1] == 1


def test_the_end_is_said_and_can_be_taken_back(serve: Any, visit: Any) -> None:
    url, context = serve(prompts=1, each=2)
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    page.keyboard.press("1")
    page.get_by_role("heading", name="All done").wait_for()
    page.keyboard.press("z")
    page.wait_for_selector(SHOWN)
    page.keyboard.press("2")
    answered(context, 1)


def test_somebody_else_has_the_last_question(serve: Any, visit: Any) -> None:
    """Said instead of `all done`; when it is skipped over there, it appears here by itself."""
    url, context = serve(prompts=1, each=2)
    first = visit(url + "/compare")
    first.wait_for_selector(SHOWN)
    second = visit(url + "/compare")
    second.get_by_role("heading", name="Somebody else is answering the last question").wait_for()
    first.keyboard.press("s")
    first.get_by_role("heading", name="Somebody else is").or_(first.get_by_role("heading", name="All done")).wait_for()
    second.wait_for_selector(SHOWN)
    second.keyboard.press("1")
    second.get_by_role("heading", name="All done").wait_for()
    assert [record.choice for record in answered(context, 2)].count("skip") == 1


def test_a_collection_without_questions_says_so(serve: Any, visit: Any) -> None:
    """Not `all done`, and nothing to take back; questions that come later are found."""
    url, _ = serve(prompts=0)
    page = visit(url + "/compare")
    page.get_by_role("heading", name="No questions yet").wait_for()
    assert page.locator(".panel button").count() == 0


def test_answers_survive_a_broken_connection(serve: Any, visit: Any, chromium: Any) -> None:
    """The network goes away, and all that was fetched is answered: said, also when there is nothing left to show; each
    answer is kept, and sent once when the network is back."""
    url, context = serve()
    browser = chromium.new_context(viewport=DESKTOP)
    page = browser.new_page()
    page.goto(url + "/compare")
    page.wait_for_selector(SHOWN)
    app_server.until(lambda: page.evaluate("document.querySelector('visfeedback-compare').talk.line.ready.length") >= 4)
    page.wait_for_timeout(300)
    browser.set_offline(True)
    said = 0
    while not page.get_by_text("Fetching images").is_visible():
        page.keyboard.press("12"[said % 2])
        said += 1
    page.get_by_text("No connection").wait_for()
    assert said >= 5 and not list(context.store.feedback())
    browser.set_offline(False)
    answered(context, said)
    page.get_by_text("No connection").wait_for(state="hidden")
    browser.close()


def test_pictures_that_get_lost_on_the_way_are_fetched_again(serve: Any, chromium: Any) -> None:
    """The first three requests for a picture fail; nobody is told to skip a question because of that."""
    url, _ = serve(prompts=1, each=2)
    browser = chromium.new_context(viewport=PHONE)
    page = browser.new_page()
    lost: list[str] = []

    def lose(route: Any) -> None:
        lost.append(route.request.url)
        route.abort() if len(lost) <= 3 else route.continue_()

    page.route("**/image/**", lose)
    page.goto(url + "/compare")
    page.wait_for_selector(SHOWN)
    assert page.locator(SHOWN).count() == 2 and len(lost) >= 5
    browser.close()


def test_a_picture_that_is_gone_is_said_so(serve: Any, chromium: Any) -> None:
    """A damaged file in the store: words in its place, no slider, and the question can be skipped."""
    url, context = serve(prompts=1, each=2)
    for file in context.store.image_folder.root.rglob("*.png"):
        file.write_bytes(b"no picture")
    browser = chromium.new_context(viewport=DESKTOP)
    page = browser.new_page()
    page.goto(url + "/compare")
    page.get_by_text("This image cannot be shown").first.wait_for()
    assert not page.get_by_role("button", name="Slider").is_visible()
    assert page.locator(".answers").evaluate("one => one.inert")  # nobody can tell
    page.keyboard.press("1")
    page.keyboard.press("s")
    [record] = answered(context, 1)
    assert record.choice == "skip"
    browser.close()


@SIZES
def test_a_long_prompt_scrolls_by_keys_and_fades_until_its_end(size: dict[str, int], serve: Any, visit: Any) -> None:
    """400 words leave room for both images; Tab reaches the text first, End shows its end."""
    url, _ = serve()
    page = visit(url + "/compare", size)
    page.wait_for_selector(SHOWN)
    page.evaluate(
        """words => { const screen = document.querySelector('visfeedback-compare');
        screen.show({ ...screen.talk.current, prompt: words }); }""",
        "a very long prompt " * 100,
    )
    prompt = page.locator(PROMPT)
    assert prompt.get_attribute("class") == "prompt long"
    for place in page.locator(".answers button").all():
        assert place.bounding_box()["y"] + place.bounding_box()["height"] <= size["height"]
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    app_server.until(lambda: prompt.get_attribute("class") == "prompt long end")
    assert not overflow(page)


def test_marks_made_by_keys_do_not_hide_each_other(serve: Any, visit: Any) -> None:
    url, context = serve(Asking(kind="region", repeats=0), prompts=1, each=1)
    page = visit(url + "/compare")
    page.wait_for_selector(SHOWN)
    for key in ("a", "a", "Enter"):
        page.keyboard.press(key)
    [record] = answered(context, 1)
    assert len({(region.x, region.y) for region in record.regions}) == 2
