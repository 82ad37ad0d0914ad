"""The chat page in a real browser, over a real server on loopback."""

import gc
import shutil
import warnings

import pytest

from llmrec.cli.chat import _local_server
from llmrec.errors import EnvironmentProblem

pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("default"),  # gradio's and its server's own
]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def forget():
    """Collect what gradio and playwright leave open, whose warnings would come up in whichever test is next."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="module")
def shown(served_checkpoint):
    """(client, url) of a page over the tiny checkpoint."""
    pytest.importorskip("gradio")
    from llmrec.serve.page import build_page, launch

    with _local_server(served_checkpoint.folder) as client:
        page = build_page(client, max_tokens=24)
        url = launch(page)
        yield client, url
        page.close()
        del page
        forget()


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()
    forget()


def seen(place, text):
    """`text` where it can be seen: gradio's tables hold a second, hidden copy of their cells."""
    return place.get_by_text(text, exact=True).locator("visible=true").first


def test_a_visit(shown, browser, recommender):
    _, url = shown
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)

    # what was chosen: by title and by id, and what was meant is shown
    find, history = page.locator("#find textarea, #find input"), page.locator("#history")
    titles = [recommender.titles.title(item_id) for item_id in ("7", "13")]
    for word, title in zip((titles[0], "13"), titles, strict=True):
        find.fill(word)
        find.press("Enter")
        seen(history, title).wait_for()

    # the list is the one that Python gives; a click chooses from it
    expected = recommender.recommend(["7", "13"], 5).items
    page.click("#recommend")
    listed = page.locator("#next")
    for item in expected:
        seen(listed, item.title).wait_for()
    seen(listed, expected[1].title).click()
    seen(history, expected[1].title).wait_for()
    page.click("#back button, button#back")
    seen(history, expected[1].title).wait_for(state="detached")

    # a conversation; what is typed is text, not markup
    line, said = page.locator("#line textarea, #line input"), page.locator("#said")
    line.fill("<b>What</b> *next*?")
    line.press("Enter")
    said.get_by_text("<b>What</b> *next*?").first.wait_for()
    page.wait_for_function("document.querySelectorAll('#said .bot.message, #said .message.bot').length >= 1")

    # what is unknown is said, and nothing is added
    find.fill("qqqqqqqq")
    find.press("Enter")
    page.get_by_text("neither an item id nor close to a title").first.wait_for()

    assert {address.split("/")[2] for address in asked} == {url.split("/")[2]}  # no other machine is asked
    page.close()


def test_two_visitors_do_not_share_a_history(shown, browser, recommender):
    _, url = shown
    title = recommender.titles.title("7")
    first, second = browser.new_page(), browser.new_page()
    for page in (first, second):
        page.goto(url)
    find = first.locator("#find textarea, #find input")
    find.fill("7")
    find.press("Enter")
    seen(first.locator("#history"), title).wait_for()
    assert seen(second.locator("#history"), title).count() == 0


def test_a_port_in_use_is_the_environments_fault(shown):
    client, url = shown
    from llmrec.serve.page import build_page, launch

    port = int(url.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(EnvironmentProblem, match=f"Port {port} of 127.0.0.1 is in use"):
        launch(build_page(client), port)


def test_markup_in_titles_is_shown_as_it_is():
    pytest.importorskip("gradio")
    from llmrec.serve.client import Chunk
    from llmrec.serve.page import _marked, plain

    assert plain("a*b_[c](d)<e>") == r"a\*b\_\[c\]\(d\)\<e\>"
    assert _marked(Chunk(" A *Star* ", [{"item_id": "1"}])) == r" **A \*Star\*** "
    assert _marked(Chunk("<script>")) == r"\<script\>"
