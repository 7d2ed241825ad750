"""D3PO in the Rounds tab, in real Chromium and with a real, tiny model: what is said meanwhile, and what is found."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import app_server
import pytest
import uvicorn
from app_server import until

from visfeedback.app import server
from visfeedback.app.choosing import Asking
from visfeedback.app.context import Context
from visfeedback.app.tabs import rounds
from visfeedback.cli._rounds import rounds as handed
from visfeedback.cli.collect_live import Live, Painter
from visfeedback.types.records import Prompt

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]
SIZES = pytest.mark.parametrize("size", [(1440, 900), (390, 844)], ids=["desktop", "phone"])


@pytest.fixture
def context(tmp_path: Path, tiny_sd: Path) -> Iterator[Context]:
    with app_server.context(f"sqlite:///{tmp_path}/p.db", tabs=True) as made:
        live = Live(steps=1, device="cpu")
        painter = Painter(str(tiny_sd), (), [Prompt.of("x")], live, Asking(), made.store, made.desk)
        made.model, made.rounds = str(tiny_sd), handed(painter)
        yield made


@pytest.fixture
def address(context: Context) -> Iterator[str]:
    bound = server.listen("127.0.0.1", 0)
    app = server.application(context, tabs=(rounds,))
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, args=([bound],), daemon=True)
    thread.start()
    until(lambda: running.started)
    yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    running.should_exit = True
    thread.join(timeout=20)


WATCH = """() => {
  window.said = [];
  const look = () => {
    const box = document.querySelector('#rounds-said .busy')?.getBoundingClientRect();
    const text = document.querySelector('#rounds-said')?.innerText ?? '';
    window.said.push({text, top: box?.top, bottom: box?.bottom});
  };
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
"""keeps every sentence that was on the page and where it stood: with a model this small some last a blink"""


def says(page: Any, words: str) -> None:
    page.wait_for_function("w => document.querySelector('#rounds-said')?.innerText.includes(w)", arg=words)


def again(page: Any, words: str) -> None:
    """As a person would: Gradio sometimes loses an event that follows another one at once; then the button is back."""
    ready = "document.querySelector('#rounds-grid .next:enabled') !== null"
    there = "document.querySelector('#rounds-said')?.innerText.includes(w)"
    page.wait_for_function(f"w => ({ready}) || ({there})", arg=words)
    if not page.evaluate(f"w => ({there}) ?? false", words):
        page.locator("#rounds-grid .next").click()
    says(page, words)


@SIZES
def test_a_round_says_how_the_learning_goes(
    chromium: Any, address: str, context: Context, size: tuple[int, int]
) -> None:
    """Nine images are higher than the screen: at the button below them, the sentences of the learning are in sight.
    Then the tab shows a folder, which is there. A press of which nothing comes can be repeated."""
    browser = chromium.new_context(viewport={"width": size[0], "height": size[1]})
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.get_by_role("tab", name="Rounds").click()
    page.locator("#rounds-prompt input, #rounds-prompt textarea").first.fill("a hat")
    page.locator("#rounds-images input").first.fill("9")
    page.locator("#rounds-engine input").first.click()
    page.get_by_role("option", name="D3PO").click()
    page.locator("#rounds-start").click()
    says(page, "Round 1: nothing is liked yet")
    page.locator("#rounds-grid [data-place='8'][data-mark='1']").click()
    page.evaluate(WATCH)
    says(page, "Round 1: 1 liked")
    page.locator("#rounds-grid .next").click()
    again(page, "Round 2: 1 liked and 0 disliked")
    learning = [one for one in page.evaluate("window.said") if "Learning from the marks of round 1" in one["text"]]
    assert learning and all(one["top"] >= 0 and one["bottom"] <= size[1] for one in learning)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    shown = page.locator("#rounds-grid .learned pre").inner_text()
    [found] = (context.folder / "rounds").glob("*/round-0/learned-*/adapter")
    assert str(found) in shown and list(found.glob("*.safetensors"))
    browser.close()
