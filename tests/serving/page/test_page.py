"""The page as a person uses it, in Chromium, against a real server process."""

import re
import shutil
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import pytest
from playwright.sync_api import Page, Route, expect
from serving_helpers import server_process

SECONDS = 1.0  # from a click to the new ranking, on a machine that does nothing else
SLOWER = 10  # how much slower a machine may be, in these tests
expect.set_options(timeout=60_000)


def titles(page: Page, ranking: str = "hits") -> list[str]:
    return page.locator(f"#{ranking} .title").all_inner_texts()


def ask(page: Page, query: str, *, related: str | None = None) -> None:
    """Type a query, and wait for its answer."""
    with page.expect_response("**/search"):
        page.fill("#query", query)
        page.keyboard.press("Enter")
    if related is not None:
        with page.expect_response("**/search"):
            page.fill("#related", related)
            page.keyboard.press("Enter")
        expect(page.locator("#related-hits li").first).to_be_visible()
    expect(page.locator("#hits")).to_have_attribute("aria-busy", "false")


def teach(page: Page, number: int) -> str:
    """Say that a hit is right, and wait for the news; returns the hit's title."""
    item = page.locator("#hits li").nth(number)
    title = item.locator(".title").inner_text()
    item.get_by_role("button", name="This is right").click()
    expect(page.locator("#news")).to_be_visible()
    return title


def test_a_search_shows_hits_with_their_words_and_why(open_page) -> None:
    page = open_page()
    ask(page, "sleeping otter")
    expect(page.locator("#hits li")).to_have_count(10)
    best = page.locator("#hits li", has_text=re.compile(r"(?<!\d)1st by words"))
    assert best.locator("mark").all_inner_texts() == ["otter", "sleeps"]
    facts = best.locator(".facts").inner_text()
    assert re.search(
        r"score [\d.]+\s+\d+\w\w by meaning\s+1st by words\s+has sleeping, otter\s+animal: otter", facts
    ), facts
    assert "it tells the order" in page.inner_text("#scores")
    page.get_by_role("button", name="More results").click()
    expect(page.locator("#hits li")).to_have_count(20)
    expect(page.locator("#hits li").nth(10)).to_be_focused()
    for mode, unit in (("Meaning", "cosine"), ("Words", "BM25")):
        page.get_by_text(mode, exact=True).click()
        expect(page.locator(".facts").first).to_contain_text(unit)
    assert all("otter" in title for title in titles(page)[:4])
    assert page.locator("#hits .right").count() == 0  # what is taught has no part in a search by words


def test_what_is_searched_is_in_the_address(open_page) -> None:
    page = open_page(place="#q=otter&filter=number<10&mode=lexical")
    expect(page.locator("#hits li")).to_have_count(2)
    page.reload()
    expect(page.locator("#hits li")).to_have_count(2)
    assert page.input_value("#filter") == "number<10"
    page.evaluate("() => { location.hash = '#q=heron&mode=lexical' }")  # as one who changes it by hand
    expect(page.locator("#hits li")).to_have_count(4)
    page.go_back()
    expect(page.locator("#hits li")).to_have_count(2)


def test_back_and_forward_go_from_search_to_search(open_page) -> None:
    page = open_page()
    hits, heron = page.locator("#hits li"), page.get_by_role("button", name="animal heron, 4 documents")
    page.focus("#query")
    with page.expect_response("**/search"):
        page.keyboard.type("otter by", delay=350)  # a search for nearly every letter
    page.keyboard.type(" the river")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"#q=otter\+by\+the\+river$"))
    page.get_by_role("button", name="More results").click()
    expect(hits).to_have_count(20)
    ask(page, "sleeps")
    heron.click()
    expect(hits).to_have_count(4)
    page.get_by_text("Words", exact=True).click()
    expect(page.locator(".facts").first).to_contain_text("BM25")
    page.reload()
    for count, mode, place in (
        (4, "lexical", "#q=sleeps&mode=lexical&only="),
        (4, "hybrid", "#q=sleeps&only="),
        (10, "hybrid", "#q=sleeps"),
        (20, "hybrid", "#q=otter+by+the+river"),
    ):
        expect(hits).to_have_count(count)
        expect(page.locator(f"#modes input[value={mode}]")).to_be_checked()
        expect(page.locator(".chip[aria-pressed=true]")).to_have_count(1 if "only" in place else 0)
        assert place in page.url and page.input_value("#query") in ("sleeps", "otter by the river")
        page.go_back()
    expect(page.locator("body")).to_have_attribute("data-view", "start")
    assert page.input_value("#query") == "" and "#" not in page.url
    for count in (20, 10, 4):
        page.go_forward()
        expect(hits).to_have_count(count)
    assert titles(page)[0].startswith("The heron")
    page.locator("#hits .title").first.click()
    expect(page.locator("#reader")).to_be_visible()
    page.go_back()
    expect(page.locator("#reader")).to_be_hidden()
    expect(hits).to_have_count(4)


def test_an_open_document_is_an_entry_of_the_history(open_page, site: SimpleNamespace) -> None:
    page = open_page()
    reader, hits = page.locator("#reader"), page.locator("#hits li")
    ask(page, "sleeps")
    page.get_by_role("button", name="animal heron, 4 documents").click()
    expect(hits).to_have_count(4)
    searches: list[str] = []
    page.on("request", lambda request: searches.append(request.url) if request.url.endswith("/search") else None)
    name = titles(page)[1]
    hits.nth(1).locator(".title").click()
    expect(page.locator("#reader-title")).to_have_text(name)
    page.go_back()
    expect(reader).to_be_hidden()
    page.go_forward()
    expect(reader).to_be_visible()
    page.keyboard.press("Escape")
    expect(reader).to_be_hidden()
    expect(page).to_have_url(re.compile(r"#q=sleeps&only=[^&]*$"))
    assert not searches, "to close a document and to open it again searches nothing"
    page.go_forward()
    expect(reader).to_be_visible()
    shared = page.url
    page.reload()
    expect(page.locator("#reader-title")).to_have_text(name)
    expect(hits).to_have_count(4)
    page.keyboard.press("Escape")
    expect(reader).to_be_hidden()
    expect(page).to_have_url(re.compile(r"#q=sleeps&only=[^&]*$"))  # to go back while it still goes back is lost
    page.go_back()
    expect(hits).to_have_count(10)
    expect(reader).to_be_hidden()
    other = open_page(place=shared.removeprefix(f"{site.url}/"))
    expect(other.locator("#reader-title")).to_have_text(name)
    other.get_by_role("button", name="Close").first.click()
    expect(other).to_have_url(shared.split("&open=")[0])
    expect(other.locator("#hits li")).to_have_count(4)


def test_an_address_of_a_document_that_is_gone_is_said_to_be(open_page) -> None:
    page = open_page(place="#q=otter&open=nope")
    expect(page.locator("#trouble")).to_contain_text("has no document 'nope'")
    expect(page.locator("#hits li")).to_have_count(10)
    expect(page).to_have_url(re.compile("#q=otter$"))


def test_an_address_of_an_index_that_is_not_here_is_said_to_be(open_page) -> None:
    page = open_page(place="#q=otter&index=fishes&only=nonsense&only=%5B%22colour%22%2C%22red%22%5D")
    expect(page.locator("#trouble")).to_contain_text("There is no index 'fishes' here")
    expect(page.locator("#hits li")).to_have_count(10)


def test_teaching_moves_this_and_a_related_query_within_a_second(open_page) -> None:
    page = open_page()
    ask(page, "the otter sleeps", related="a sleeping otter")
    before, beside = titles(page), titles(page, "related-hits")
    page.evaluate("""() => new MutationObserver(() => window.moved ??= performance.now())
        .observe(document.getElementById("hits"), {childList: true})""")
    page.evaluate("() => addEventListener('click', () => window.clicked = performance.now(), true)")
    right = teach(page, 7)
    seconds = page.evaluate("() => (window.moved - window.clicked) / 1000")
    assert seconds < SECONDS * SLOWER, seconds
    assert titles(page).index(right) < 7
    assert titles(page, "related-hits") != beside
    badges = page.locator("#hits .badge").all_inner_texts()
    place = titles(page).index(right)
    assert f"▲ {7 - place}" in badges
    news = page.inner_text("#news p")
    assert re.match(rf"{len(badges)} documents? moved, \d+ for the related query", news), news
    assert re.search(r"also pulls the related query, with a weight of \d+ %", news), news
    chip = page.locator("#taught li")
    assert right in chip.inner_text() and "100 %" in chip.inner_text()
    assert page.locator("#hits li.is-right .title").all_inner_texts() == [right]

    page.locator("#undo").click()
    expect(page.locator("#taught li")).to_have_count(0)
    expect(page.locator("#news p")).to_contain_text("taken back")
    assert titles(page) == before and titles(page, "related-hits") == beside


def test_a_demonstration_is_forgotten_by_its_chip_and_comes_back_by_undo(open_page) -> None:
    page = open_page()
    ask(page, "heron")
    teach(page, 3)
    taught = titles(page)
    page.reload()
    expect(page.locator("#hits li.is-right")).to_have_count(1)  # it is the index that has learned
    page.get_by_role("button", name="Forget").click()
    expect(page.locator("#taught li")).to_have_count(0)
    expect(page.locator("#news p")).to_contain_text("taken back")
    page.locator("#undo").click()
    expect(page.locator("#taught li")).to_have_count(1)
    expect(page.locator("#hits li.is-right")).to_have_count(1)
    assert titles(page) == taught


def test_suggestions_are_earlier_queries(open_page) -> None:
    page = open_page()
    ask(page, "a bird by the water")
    ask(page, "heron")
    page.locator("#suggestions").get_by_role("button", name="a bird by the water").click()
    expect(page.locator("#related-hits li").first).to_be_visible()
    assert page.input_value("#related") == "a bird by the water"


def test_facets_and_the_filter_narrow_a_search(open_page) -> None:
    page = open_page()
    ask(page, "sleeps")
    assert page.locator(".field-name").all_inner_texts() == ["animal", "seen"]  # all numbers and links are different
    page.get_by_role("button", name="animal heron, 4 documents").click()
    expect(page.locator("#hits li")).to_have_count(4)
    chosen = page.locator(".chip[aria-pressed=true]")
    expect(chosen).to_be_focused()
    assert "heron" in chosen.inner_text()
    page.get_by_role("button", name="animal lynx, 4 documents").click()
    expect(page.locator("#hits li")).to_have_count(8)
    page.fill("#filter", "number > 12 or number = 1")
    expect(page.locator("#hits li")).to_have_count(5)
    expect(page.get_by_role("button", name="animal otter")).to_have_text("otter1")  # with this filter
    page.get_by_role("button", name="animal lynx, 2 documents").click()
    expect(page.locator("#hits li")).to_have_count(3)
    chosen.click()
    expect(page.locator("#hits li")).to_have_count(10)
    ask(page, "wolf")
    page.fill("#filter", "")
    page.get_by_role("button", name="animal <b>wolf</b>").click()
    expect(page.locator("#hits li")).to_have_count(1)


def test_facets_are_counted_alike_after_a_reload(open_page) -> None:
    page = open_page()
    chips = page.locator("#facets .chip")
    ask(page, "sleeps")
    for name, hits in (("animal heron, 4 documents", 4), ("animal lynx, 4 documents", 8), ("seen false", 8)):
        page.get_by_role("button", name=name).click()
        expect(page.locator("#hits li")).to_have_count(hits)
    page.fill("#filter", "number > 12 or number = 1")
    expect(page.locator("#hits li")).to_have_count(5)
    expect(page.get_by_role("button", name="animal raven, 2 documents")).to_be_visible()
    before = chips.all_inner_texts()
    assert len(before) == 5
    page.reload()
    expect(chips).to_have_text(before)
    page.fill("#filter", "")
    expect(page.locator("#hits li")).to_have_count(8)
    page.get_by_role("button", name="animal heron").click()
    page.get_by_role("button", name="animal lynx").click()
    page.get_by_role("button", name="seen false").click()
    expect(page.get_by_role("button", name="animal heron, 4 documents")).to_be_visible()


def test_a_wrong_filter_is_explained_at_its_character(open_page) -> None:
    page = open_page()
    ask(page, "sleeps")
    page.get_by_role("button", name="animal heron").click()
    expect(page.locator("#hits li")).to_have_count(4)
    page.fill("#filter", "number > > 3")
    error = page.locator("#filter-error")
    expect(error).to_contain_text("Expected a value here")
    assert error.locator("code").inner_text() == "number > > 3"
    assert "character 10" in error.inner_text()
    assert error.locator("code").evaluate("code => code.firstChild.length") == 9
    assert page.get_attribute("#filter", "aria-invalid") == "true"
    page.fill("#filter", 'animal = "\U0001f98a" or number > > 3')
    expect(error).to_contain_text("character 26")
    assert error.locator("mark").inner_text() == ">"
    page.fill("#filter", "number > 3")
    expect(error).to_be_hidden()
    expect(page.locator("#hits li")).to_have_count(3)


def test_a_document_opens_in_full_with_the_passage_that_was_found(open_page) -> None:
    page = open_page()
    ask(page, "a long story about an owl, sentence 50")
    page.locator("#hits .title", has_text="A long story").click()
    reader = page.locator("#reader")
    expect(reader).to_be_visible()
    text = " ".join(reader.locator(".passage").all_text_contents()).replace("The passage that was found: ", "")
    assert [int(n) for n in re.findall(r"Sentence (\d+)", text)] == list(range(60))  # each once: overlaps are left out
    assert reader.locator(".passage.found").count() == 1
    page.keyboard.press("Escape")
    expect(reader).to_be_hidden()
    ask(page, "heron river")
    page.locator("#hits .title").first.click()
    link = reader.get_by_role("link")
    assert link.get_attribute("href").startswith("https://notes.example/")
    assert link.get_attribute("rel") == "noopener noreferrer"


def test_everything_works_from_the_keyboard(open_page) -> None:
    page = open_page()
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.type("otter by the river")
    with page.expect_response("**/search"):  # and not that of what was typed first
        page.keyboard.press("Enter")
    expect(page.locator("#hits")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#hits li")).to_have_count(10)
    item = page.locator("#hits li")
    page.keyboard.press("ArrowDown")
    expect(item.nth(0)).to_be_focused()
    for key, place in (("j", 1), ("ArrowDown", 2), ("k", 1), ("ArrowUp", 0), ("j", 1)):
        page.keyboard.press(key)
        expect(item.nth(place)).to_be_focused()
    name = item.nth(1).locator(".title").inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("#reader-title")).to_have_text(name)
    page.keyboard.press("Escape")
    expect(item.nth(1)).to_be_focused()
    page.keyboard.press("t")
    expect(page.locator("#taught li")).to_have_count(1)
    expect(page.locator("#news")).to_be_visible()
    assert page.evaluate("() => document.activeElement.querySelector('.title').textContent") == name
    page.keyboard.press("u")
    expect(page.locator("#taught li")).to_have_count(0)
    page.focus("#skip")
    page.keyboard.press("Enter")
    expect(page.locator("#hits")).to_be_focused()
    expect(item).to_have_count(10)
    page.keyboard.press("j")
    expect(item.nth(1)).to_be_focused()
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()
    outline = page.evaluate("() => getComputedStyle(document.querySelector('.box')).boxShadow")
    assert outline != "none"


def test_the_keyboard_begins_at_the_best_hit_of_each_search(open_page) -> None:
    page = open_page(place="#mode=lexical")
    ask(page, "otter")
    best = titles(page)[0]
    ask(page, "otter barn" if best != "The otter of the barn" else "otter river")
    assert best in titles(page)[1:]
    page.keyboard.press("ArrowDown")
    expect(page.locator("#hits li").first).to_be_focused()


def test_the_map_names_and_opens_documents(open_page) -> None:
    page = open_page()
    ask(page, "otter")
    expect(page.locator("#map-text")).to_contain_text("26 documents")
    page.focus("#map")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#map-name")).to_have_text(f"1. {titles(page)[0]}")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#map-name")).to_have_text(f"2. {titles(page)[1]}")
    page.keyboard.press("Enter")
    expect(page.locator("#reader-title")).to_have_text(titles(page)[1])
    colours = page.evaluate("""() => { const map = document.getElementById("map");
        const bytes = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
        return new Set(new Uint32Array(bytes.buffer)).size; }""")
    assert colours > 10  # dots and marks of several colours, with soft edges


def test_hostile_text_stays_text(open_page) -> None:
    page = open_page()
    ask(page, "bait wolf script alert red back")
    item = page.locator("#hits li", has_text="bait").first
    expect(item.locator(".title")).to_have_text("<img src=x onerror=alert(1)> bait")
    assert "\x1b" not in item.inner_text()
    item.locator(".title").click()
    expect(page.locator("#reader-title")).to_be_visible()
    text = "".join(page.locator("#reader .passage").all_text_contents()).replace("The passage that was found: ", "")
    assert "<script>alert(1)</script> \ufffd[31mred" in text and "<style>body{display:none}</style>" in text
    assert page.locator("#reader-body a, #reader-body img, #reader-body script").count() == 0
    page.keyboard.press("Escape")
    page.locator("#suggestions .chip").first.wait_for()
    assert page.evaluate("() => [...document.scripts].every(script => script.src.startsWith(location.origin))")
    assert page.evaluate(
        "() => { try { document.body.innerHTML = '<b>'; return 'taken' } catch (e) { return e.name } }"
    ) in ("TypeError",)


def test_dark_by_the_system_or_by_choice(open_page) -> None:
    def paper(page: Page) -> int:
        return int(
            re.findall(r"\d+", page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor"))[0]
        )

    page = open_page(color_scheme="dark")
    assert paper(page) < 60
    switch = page.get_by_role("button", name="Dark mode")
    assert switch.get_attribute("aria-pressed") == "true"
    switch.click()
    assert paper(page) > 200 and switch.get_attribute("aria-pressed") == "false"
    page.reload()
    assert paper(page) > 200
    assert paper(open_page(color_scheme="light")) > 200


def test_a_phone_shows_all_of_it(open_page) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    ask(page, "otter", related="heron")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    page.locator("#hits li").nth(4).get_by_role("button", name="This is right").tap()
    expect(page.locator("#news")).to_be_in_viewport()
    small = page.evaluate("""() => [...document.querySelectorAll("main button, main input:not([type=radio]), select")]
        .filter(element => element.checkVisibility() && !element.closest("[tabindex='-1'], .title"))
        .map(element => [element.outerHTML.slice(0, 80), element.getBoundingClientRect()])
        .filter(([, box]) => box.width < 24 || box.height < 24).map(([text]) => text)""")
    assert small == []  # each is large enough for a finger (WCAG 2.2, 2.5.8)


def test_motion_is_left_out_for_those_who_ask_for_that(open_page) -> None:
    page = open_page(reduced_motion="reduce")
    ask(page, "the otter sleeps")
    page.evaluate("() => { window.animated = 0; Element.prototype.animate = () => window.animated++ }")
    teach(page, 6)
    assert page.locator("#hits .badge").count() > 0
    assert page.evaluate("() => window.animated") == 0


def test_the_first_view_is_small_and_comes_soon(open_page) -> None:
    page = open_page(place="#q=otter")
    expect(page.locator("#hits li").first).to_be_visible()
    expect(page.locator("#map-text")).to_contain_text("26 documents")
    sizes = page.evaluate("() => performance.getEntries().map(entry => entry.transferSize ?? 0)")
    assert len(sizes) > 10 and 20_000 < sum(sizes) < 300_000, sizes
    paint = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 1000 * SLOWER, paint


def test_colours_are_told_apart(open_page) -> None:
    """WCAG 2.2, level AA: 4.5 to 1 for text, here for each colour of text on each ground it stands on."""
    pairs = [
        *(("ink", ground) for ground in ("paper", "sheet", "tint", "taught-tint", "wrong-tint", "mark")),
        *(("soft", ground) for ground in ("paper", "sheet", "taught-tint")),
        *(("accent", ground) for ground in ("paper", "sheet", "tint")),
        *(("taught", ground) for ground in ("paper", "sheet", "taught-tint")),
        *(("wrong", ground) for ground in ("paper", "wrong-tint")),
        ("on-accent", "accent"), ("paper", "taught"), ("paper", "ink"),
    ]  # fmt: skip
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        for pair in pairs:
            rgb = page.evaluate(
                """names => names.map(name => { const box = document.createElement("i"); document.body.append(box);
                box.style.color = `var(--${name})`; const found = getComputedStyle(box).color; box.remove();
                return found.match(/[\\d.]+/g).slice(0, 3).map(Number) })""",
                pair,
            )
            light, dark = sorted(map(luminance, rgb), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, pair)


def luminance(rgb: list[float]) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


ANSWERS = {
    403: ("Not allowed from here", "names are refused", "use its address"),
    404: ("Not there", "index 'notes' is not there any more", "index it again"),
    429: ("The server is busy", "too many requests wait already", "asks again by itself"),
    503: ("The server cannot answer now", "the store process ended", "asks again by itself"),
    504: ("No answer in time", "there was no answer in time", "fewer words"),
    500: ("Something went wrong", "something went wrong", "the server's log"),
}


@pytest.mark.parametrize("status", ANSWERS)
def test_what_the_server_refuses_is_said_and_the_page_goes_on(open_page, status: int) -> None:
    page = open_page()
    heading, message, hint = ANSWERS[status]
    said = {"error": {"type": "t", "message": message, "hint": hint, "position": None}}

    def refuse(route: Route) -> None:
        route.fulfill(status=status, json=said, headers={"Retry-After": "1"})

    expect(page.locator("#about")).to_contain_text("26 documents")
    page.route("**/search", refuse)
    page.fill("#query", "otter")
    page.keyboard.press("Enter")
    trouble = page.locator("#trouble")
    for words in (heading, message, hint):
        expect(trouble).to_contain_text(re.compile(re.escape(words), re.IGNORECASE))
    page.unroute("**/search")
    if status not in (429, 503):
        trouble.get_by_role("button", name="Try again").click()
    expect(page.locator("#hits li").first).to_be_visible()
    expect(trouble).to_be_hidden()


def test_an_empty_answer_is_explained(open_page) -> None:
    page = open_page()
    ask(page, "otter")
    page.fill("#filter", "number > 1000")
    expect(page.locator("#count")).to_contain_text("Nothing was found with this filter")
    page.fill("#filter", "")
    page.get_by_text("Words", exact=True).click()
    expect(page.locator("#hits li")).to_have_count(4)
    page.fill("#query", "the")
    expect(page.locator("#trouble")).to_contain_text("stop words")
    page.fill("#query", "otter")
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_token_is_asked_for_and_kept_for_the_tab(open_page, notes_home: Path, tmp_path: Path) -> None:
    home = shutil.copytree(notes_home, tmp_path / "home")
    with server_process(home, "notes", EPIC_SEARCH_TOKEN="correct-horse") as server:
        page = open_page(url=server.url, forget=False)
        dialog = page.locator("#token-dialog")
        expect(dialog).to_be_visible()
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-why")).to_contain_text("not the right one")
        page.fill("#token", "correct-horse")
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        ask(page, "otter")
        page.reload()
        expect(page.locator("#hits li").first).to_be_visible()
        expect(dialog).to_be_hidden()


def test_the_page_goes_on_when_the_server_is_back(open_page, notes_home: Path, tmp_path: Path) -> None:
    home = shutil.copytree(notes_home, tmp_path / "home")
    with server_process(home, "notes") as server:
        page = open_page(url=server.url, forget=False)
        ask(page, "otter")
        port = server.url.rsplit(":", 1)[1]
    page.fill("#query", "heron")
    expect(page.locator("#trouble")).to_contain_text("The server does not answer")
    with server_process(home, "notes", "--port", port):
        expect(page.locator("#hits mark", has_text="heron").first).to_be_visible()
        expect(page.locator("#trouble")).to_be_hidden()


def test_an_answer_of_the_index_that_was_left_comes_late(open_page) -> None:
    page = open_page()
    ask(page, "sleeps")
    teach(page, 0)
    expect(page.locator("#taught li")).to_have_count(1)
    page.select_option("#index", "birds")
    expect(page.locator("#taught li")).to_have_count(0)
    held: list[Route] = []
    page.route("**/indexes/notes/demonstrations", lambda route: held.append(route))
    with page.expect_request("**/indexes/notes/demonstrations"):
        page.select_option("#index", "notes")
    with page.expect_response("**/search"):
        page.select_option("#index", "birds")
    with page.expect_response("**/search"):
        held[0].continue_()
    expect(page.locator("#hits")).to_have_attribute("aria-busy", "false")
    assert page.locator("#taught li").count() == 0


def test_another_index_is_chosen_and_one_that_is_gone_is_said_to_be(open_page, site: SimpleNamespace) -> None:
    page = open_page()
    expect(page.locator("#index option")).to_have_text(["notes", "birds"])
    ask(page, "wren")
    page.select_option("#index", "birds")
    expect(page.locator("#hits li")).to_have_count(2)
    expect(page.locator("#about")).to_contain_text("2 documents")
    assert "A wren sings." in titles(page)  # of a document without a title, its text
    expect(page.locator("#facets")).to_be_hidden()
    (site.home / "birds").rename(site.home.with_name("birds-gone"))  # to be back for other tests
    page.fill("#query", "robin")
    expect(page.locator("#trouble")).to_contain_text("Index 'birds' is not there any more")
    page.select_option("#index", "notes")
    expect(page.locator("#hits li")).to_have_count(10)
    expect(page.locator("#trouble")).to_be_hidden()
    site.home.with_name("birds-gone").rename(site.home / "birds")


def test_words_are_marked_in_any_script(open_page) -> None:
    page = open_page()
    text = "nodes => nodes.map(node => node.outerHTML ?? node).join('')"
    module = "const {excerpt, marked} = await import('/page/highlight.js')"
    [found, part] = page.evaluate(
        f"async () => {{ {module}; const text = {text};"
        " return [text(marked('\u0130zmir port', ['\u0130zmir'])),"
        " text(excerpt('\u3042'.repeat(400) + '\u3002otter\u3002' + '\u3042'.repeat(9), ['otter'], 100))] }"
    )
    assert found == "<mark>\u0130zmir</mark> port"
    assert "otter" in part and part.startswith("\u2026 \u3042")


def test_what_a_browser_is_told_about_the_page(site: SimpleNamespace) -> None:
    for path in ("/", "/page/main.js"):
        connection = HTTPConnection(site.url.removeprefix("http://"), timeout=60)
        connection.request("GET", path)
        headers = connection.getresponse().headers
        connection.close()
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
