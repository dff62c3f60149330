"""Readers open messages by mouse, by keyboard and by touch, and without any script."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import ROOT, missing
from conversations import Conversation, execute, frame, http_request, http_response, invented
from playwright.sync_api import Browser, Locator, Page, expect

from underhood.capture.store import Capture
from underhood.draw.fields import as_html, field
from underhood.draw.octets import octets
from underhood.draw.page import Picture
from underhood.draw.timing import timing
from underhood.trace import Trace

Open = Callable[..., Page]

AXE = ROOT / "node_modules/axe-core/axe.min.js"


def relayed(name: str = "relayed") -> Trace:
    return execute(relayed=True, name=name).trace().protocol("jupyter")


def arrow(page: Page, number: int) -> Locator:
    return page.locator(f'[data-message="{number}"]').first


def panel(page: Page) -> Locator:
    return page.get_by_role("region", name="Chosen message").locator("visible=true")


def middle_of_line(page: Page, number: int) -> tuple[float, float]:
    box = arrow(page, number).locator(".u-line").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


# ---- choosing


def test_a_click_on_an_arrow_opens_its_message(open_page: Open) -> None:
    trace = relayed()
    page = open_page(trace.sequence_diagram())
    expect(panel(page)).to_have_count(0)
    message = trace.types("stream")[0]
    page.mouse.click(*middle_of_line(page, message.number))
    expect(panel(page)).to_contain_text("iopub, kernel to server, stream: stdout")
    expect(panel(page)).to_contain_text("signature valid")
    expect(panel(page)).to_contain_text('"text": "0\\n"')
    assert arrow(page, message.number).get_attribute("aria-current") == "true"
    for part, said in (
        ("header", message.msg_id),
        ("parent header", '"msg_type": "execute_request"'),
        ("bytes", "Text that the code printed"),
    ):
        panel(page).get_by_role("tab", name=part, exact=True).click()
        expect(panel(page)).to_contain_text(said)
    panel(page).get_by_role("button", name="Close").click()
    expect(panel(page)).to_have_count(0)


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_an_arrow_with_a_link_of_its_own_is_followed(open_page: Open, by: str) -> None:
    trace = relayed()
    page = open_page(trace.sequence_diagram(links={trace[0].number: "about:blank?elsewhere"}))
    if by == "mouse":
        page.mouse.click(*middle_of_line(page, trace[0].number))
    else:
        arrow(page, trace[0].number).press("Enter")
    page.wait_for_url("about:blank?elsewhere")


def test_a_tap_with_a_finger_opens_a_message(open_page: Open) -> None:
    trace = relayed()
    page = open_page(trace.sequence_diagram(), width=390, has_touch=True)
    page.touchscreen.tap(*middle_of_line(page, trace[0].number))
    expect(panel(page)).to_contain_text("browser to server, execute_request")


def test_the_keyboard_alone_reads_the_whole_diagram(open_page: Open) -> None:
    trace = relayed()
    page = open_page(trace.sequence_diagram())
    first = arrow(page, trace[0].number)
    for _ in range(20):  # one stop for all the arrows, after the buttons
        page.keyboard.press("Tab")
        if first.evaluate("arrow => arrow === document.activeElement"):
            break
    expect(first).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(arrow(page, trace[2].number)).to_be_focused()
    expect(panel(page)).to_have_count(0)
    page.keyboard.press("Enter")
    expect(panel(page)).to_contain_text("kernel to server, status: busy")
    expect(panel(page).locator(".uh-said")).to_be_focused()
    page.keyboard.press("Escape")
    expect(panel(page)).to_have_count(0)
    expect(arrow(page, trace[2].number)).to_be_focused()
    page.keyboard.press(" ")
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    expect(arrow(page, trace[-1].number)).to_be_focused()
    page.keyboard.press("Tab")
    assert not page.evaluate("document.activeElement.hasAttribute('data-message')")


def test_an_open_message_follows_the_arrow_keys(open_page: Open) -> None:
    trace = relayed()
    page = open_page(trace.sequence_diagram())
    page.mouse.click(*middle_of_line(page, trace[0].number))
    for message in trace[1:]:
        page.keyboard.press("ArrowDown")
        expect(panel(page)).to_contain_text(f"Message {message.number}")
    page.keyboard.press("ArrowDown")
    expect(panel(page)).to_contain_text("14 of 14")
    panel(page).get_by_role("button", name="Previous message").click()
    expect(panel(page)).to_contain_text("13 of 14")
    expect(panel(page).get_by_role("button", name="Previous message")).to_be_focused()


def test_tabs_of_a_message_are_one_stop_with_arrow_keys(open_page: Open) -> None:
    trace = relayed()
    page = open_page(trace.sequence_diagram())
    page.mouse.click(*middle_of_line(page, trace[0].number))
    panel(page).get_by_role("tab", name="content").focus()
    page.keyboard.press("ArrowLeft")
    expect(panel(page).get_by_role("tab", name="bytes")).to_be_focused()
    expect(panel(page).get_by_role("tab", name="bytes")).to_have_attribute("aria-selected", "true")
    expect(panel(page)).to_contain_text("Asks the kernel to run code")


# ---- addresses


def test_a_message_has_an_address_of_its_own(open_page: Open) -> None:
    trace = relayed("addressed")
    picture = trace.sequence_diagram()
    number = trace[7].number
    page = open_page(picture)
    page.mouse.click(*middle_of_line(page, number))
    address = page.evaluate("location.hash")
    assert re.fullmatch(rf"#addressed(-\d+)?-m{number}", address)
    again = open_page(picture, address=address)
    expect(panel(again)).to_contain_text(f"Message {number}")
    expect(arrow(again, number).locator(".u-label")).to_be_in_viewport()
    panel(again).get_by_role("button", name="Close").click()
    assert again.evaluate("location.hash") == ""


def test_pictures_on_one_page_keep_out_of_each_others_way(open_page: Open) -> None:
    trace = relayed()
    pictures = [trace.sequence_diagram(), trace.sequence_diagram(scale="time"), trace.table()]
    page = open_page(*pictures, trace.types("status").sequence_diagram())
    figures = page.locator("figure")
    for n in (1, 3, 0):
        figures.nth(n).locator("[data-message]").nth(1).locator(".u-hit").click()
        expect(figures.nth(n).locator(".uh-panel")).to_be_visible()
    addresses = page.locator("[data-message]").evaluate_all(
        "all => all.map(a => a.getAttribute('xlink:href'))"
    )
    assert len(set(addresses)) == len(addresses)
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == (
        page.locator("[id]").count()
    )


def test_two_programs_that_give_out_the_same_address_are_told_apart(open_page: Open) -> None:
    html = relayed("twice").sequence_diagram().html
    page = open_page(html, html)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)
    second = page.locator("figure").nth(1)
    second.locator("[data-message]").first.locator(".u-hit").click()
    expect(second.locator(".uh-panel")).to_be_visible()
    assert page.evaluate("location.hash").startswith(f"#{ids[-1].rsplit('-m', 1)[0]}-m")


# ---- channels, table, downloads


def test_channels_can_be_switched_off_and_on(open_page: Open) -> None:
    trace = relayed()
    page = open_page(trace.sequence_diagram())
    button = page.get_by_role("button", name="iopub")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    left = page.locator('[data-message]:not([aria-hidden="true"])')
    assert left.count() == len(trace.channel("shell"))
    left.first.focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(panel(page)).to_contain_text("execute_reply")
    expect(panel(page)).to_contain_text("4 of 4")
    button.click()
    assert left.count() == len(trace)


def test_the_drawing_becomes_a_table_and_back(open_page: Open) -> None:
    trace = relayed()
    page = open_page(trace.sequence_diagram())
    toggle = page.get_by_role("button", name="Table")
    toggle.click()
    expect(page.locator(".uh-stage")).to_be_hidden()
    assert page.get_by_role("row").count() == len(trace) + 1
    toggle.click()
    expect(page.locator(".uh-stage")).to_be_visible()


def test_everything_can_be_downloaded(open_page: Open, tmp_path: Path) -> None:
    trace = relayed("downloads")
    page = open_page(trace.sequence_diagram(), theme="dark")
    for suffix in ("SVG", "PNG", "pcapng"):
        with page.expect_download() as download:
            page.get_by_role("button", name=suffix, exact=True).click()
        download.value.save_as(tmp_path / f"file.{suffix.lower()}")
    capture = Capture.load(tmp_path / "file.pcapng")
    assert [m.data for m in capture.trace().protocol("jupyter")] == [m.data for m in trace]
    assert (tmp_path / "file.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "file.svg").read_text(encoding="utf-8")
    page.goto((tmp_path / "file.svg").as_uri())
    assert page.locator("text").first.evaluate("e => getComputedStyle(e).fill") != "rgb(0, 0, 0)"
    assert drawn.count(">execute_input<") == 2


# ---- bytes: two programs, one result


@pytest.mark.parametrize("seed", range(3))
def test_the_page_sets_bytes_as_python_does(open_page: Open, seed: int) -> None:
    trace = invented(seed).trace()[:25]
    page = open_page(trace.sequence_diagram())
    page.locator("[data-message]").first.focus()
    page.keyboard.press(" ")
    panel(page).get_by_role("tab", name="bytes").click()
    for message in trace:
        tree = panel(page).locator(".uh-view > details")
        expect(panel(page)).to_contain_text(f"Message {message.number}")
        expect(tree).to_have_count(1)
        expected = as_html(field(message.span, message.data), message.data, level=1)
        normal = page.evaluate(
            "html => { const t = document.createElement('template'); t.innerHTML = html;"
            " return t.innerHTML; }",
            expected,
        )
        expect(tree.locator(".uh-fl").first).to_have_text(message.span.label)
        assert tree.evaluate("tree => tree.outerHTML") == normal
        panel(page).get_by_role("button", name="Next message").click(
            trial=message is trace[-1], force=True
        ) if message is not trace[-1] else None


# ---- themes


def ground(page: Page) -> str:
    return str(page.locator("figure").first.evaluate("f => getComputedStyle(f).backgroundColor"))


LIGHT, DARK = "rgb(253, 252, 249)", "rgb(22, 25, 31)"


@pytest.mark.parametrize(
    ("theme", "attributes", "body", "expected"),
    [
        ("light", "", "", LIGHT),
        ("dark", "", "", DARK),
        ("dark", ' data-theme="light"', "", LIGHT),
        ("light", ' data-theme="dark"', "", DARK),
        ("dark", "", 'data-jp-theme-light="true"', LIGHT),
        ("light", "", 'data-jp-theme-light="false"', DARK),
        ("light", "", 'class="vscode-dark"', DARK),
        ("dark", "", 'class="vscode-light"', LIGHT),
    ],
)
def test_a_picture_follows_the_theme_of_its_page(
    open_page: Open, theme: str, attributes: str, body: str, expected: str
) -> None:
    html = f"<div {body}>{relayed().sequence_diagram().html}</div>"
    assert ground(open_page(html, theme=theme, attributes=attributes)) == expected


def test_motion_is_only_for_those_who_want_it(open_page: Open) -> None:
    seen = "a => getComputedStyle(a.querySelector('.u-hit')).transitionDuration"
    picture = relayed().sequence_diagram()
    quiet = open_page(picture, reduced_motion="reduce")
    assert quiet.locator("[data-message]").first.evaluate(seen) == "0s"


# ---- where scripts and styles do not run


def test_without_a_script_an_arrow_leads_to_its_open_message(open_page: Open) -> None:
    trace = relayed()
    page = open_page(trace.sequence_diagram(), java_script_enabled=False)
    arrow(page, trace[3].number).locator(".u-hit").click()
    opened = page.locator("details.uh-message[open]")
    expect(opened).to_have_count(1)
    expect(opened).to_contain_text('"execution_state": "busy"')
    expect(opened.locator("dl")).to_be_in_viewport()


def test_without_styles_list_and_table_remain(open_page: Open) -> None:
    html = relayed().sequence_diagram().html
    # What JupyterLab's sanitizer leaves while a notebook is not trusted.
    html = re.sub(r"<(style|script)\b.*?</\1>", "", html, flags=re.DOTALL)
    html = re.sub(r"</?(svg|g|path|rect|text|tspan|desc|title)\b[^>]*>", "", html)
    page = open_page(html)
    expect(page.locator(".uh-stage")).to_be_hidden()
    expect(page.get_by_text("The drawing is not shown")).to_be_visible()
    page.get_by_text("As a table").click()
    expect(page.get_by_role("row")).to_have_count(15)


def test_paper_shows_the_drawing_and_its_table(open_page: Open) -> None:
    page = open_page(relayed().sequence_diagram(), theme="dark")
    page.emulate_media(media="print")
    expect(page.locator(".uh-stage svg").first).to_be_visible()
    expect(page.locator("table")).to_be_visible()
    expect(page.locator(".uh-tools")).to_be_hidden()
    assert ground(page) == LIGHT


# ---- large pictures


def test_the_names_stay_in_sight_while_a_long_diagram_scrolls(open_page: Open) -> None:
    page = open_page(execute(cells=8, relayed=True).trace().protocol("jupyter").sequence_diagram())
    names = page.locator(".u-heads")
    page.mouse.wheel(0, 2000)
    page.wait_for_function("document.querySelector('.u-heads').classList.contains('uh-stuck')")
    expect(names).to_be_in_viewport()
    page.mouse.wheel(0, -4000)
    page.wait_for_function("!document.querySelector('.u-heads').classList.contains('uh-stuck')")


def test_a_message_among_many_still_says_what_it_is(open_page: Open) -> None:
    trace = execute(cells=60).trace().protocol("jupyter")
    page = open_page(trace.sequence_diagram())
    arrow(page, trace[300].number).locator(".u-hit").click()
    expect(panel(page)).to_contain_text("iopub, kernel to client, status: idle")
    expect(panel(page)).to_contain_text(f"301 of {len(trace)}")
    page.keyboard.press("ArrowUp")
    expect(panel(page)).to_contain_text(f"Message {trace[299].number}")


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_a_picture_never_makes_the_page_scroll_sideways(open_page: Open, width: int) -> None:
    trace = relayed()
    wide = trace.sequence_diagram(parties=("browser", "a", "b", "c", "d", "server", "e", "kernel"))
    page = open_page(trace.sequence_diagram(), wide, trace.table(), octets(trace[0]), width=width)
    page.locator("[data-message]").first.locator(".u-hit").click()
    panel(page).get_by_role("tab", name="bytes").click()
    expect(panel(page).locator(".uh-view > details")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Text keeps its size: what is too wide scrolls inside the picture.
    size = page.locator(".u-label").first.evaluate("t => t.getBoundingClientRect().height")
    assert size >= 11


# ---- everybody


def all_kinds() -> list[Picture]:
    trace = relayed()
    talk = Conversation("http")
    link = talk.link("browser", "server", "http")
    for n, status in enumerate(((200, "OK"), (404, "Not Found"))):
        talk.octets(link, ">", http_request("GET", f"/api/{n}"))
        talk.octets(link, "<", http_response(*status))
    heartbeat = Conversation("beats")
    beat = heartbeat.link("client", "kernel", "heartbeat")
    for _ in range(5):
        for way in (">", "<"):
            heartbeat.octets(beat, way, frame(b"", more=True) + frame(b"ping"))  # type: ignore[arg-type]
    return [
        trace.sequence_diagram(caption="Look at the end.", notes={trace[2].number: "Busy."}),
        execute(cells=3).trace().sequence_diagram(groups=True, scale="time"),
        heartbeat.capture().trace().types("ping").sequence_diagram(fold=True),
        octets(trace[0]),
        octets(*trace[:2]),
        timing(trace),
        timing(talk.capture().trace()),
        timing(execute(cells=3).trace(), show="busy"),
        trace.table(),
    ]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(open_page: Open, theme: str, width: int) -> None:
    if not AXE.exists():
        missing("axe-core is not installed: run make test")
    page = open_page(*all_kinds(), theme=theme, width=width)
    page.locator("[data-message]").first.locator(".u-hit").click()
    panel(page).get_by_role("tab", name="bytes").click()
    expect(panel(page).locator(".uh-view > details")).to_have_count(1)
    for closed in page.locator("figure > details").all()[:4]:
        closed.evaluate("details => details.open = true")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    options = {"runOnly": tags, "preload": False}
    found = page.evaluate("options => axe.run(document, options)", options)
    faults = [f"{v['id']}: {n['html'][:300]}" for v in found["violations"] for n in v["nodes"]]
    assert faults == []
    assert len(found["passes"]) > 15


def test_what_a_screen_reader_meets(open_page: Open) -> None:
    trace = relayed()
    picture = trace.sequence_diagram(title="One cell")
    page = open_page(picture)
    figure = page.get_by_role("figure", name="One cell")
    drawing = figure.get_by_role("group", name="One cell").first
    expect(drawing).to_be_visible()
    # What Chromium tells a screen reader, since Playwright's own roles know no xlink:href.
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    links = [node for node in tree if node.get("role", {}).get("value") == "link"]
    names = [str(node["name"]["value"]) for node in links if " to " in str(node["name"]["value"])]
    assert len(names) == 14
    for message, name in zip(trace, names, strict=True):
        assert name.startswith(f"{message.channel}, {message.sender} to {message.receiver}")


# ---- in the book as it is built


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_a_picture_in_the_built_book_is_opened_by_mouse_and_by_keyboard(
    build: Path, browser: Browser, theme: str, width: int
) -> None:
    size = {"width": width, "height": 900}
    page = browser.new_page(viewport=size, color_scheme=theme)  # type: ignore[arg-type]
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((build / "html/book/appendix/gallery.html").as_uri())
    pictures = page.locator('[data-underhood="sequence"]')
    assert pictures.count() >= 8
    for picture in pictures.all():
        first = picture.locator("[data-message]").first
        first.locator(".u-hit").click()
        expect(picture.locator(".uh-said")).to_be_in_viewport()
        said = picture.locator(".uh-said").inner_text()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(picture.locator(".uh-said")).to_be_focused()
        assert picture.locator(".uh-said").inner_text() != said
        picture.get_by_role("tab", name="bytes").click()
        expect(picture.locator(".uh-view .uh-f").first).to_be_visible()
        page.keyboard.press("Escape")
        expect(picture.locator(".uh-panel")).to_be_hidden()
    assert ground(page) == {"light": LIGHT, "dark": DARK}[theme]
    assert faults == []
    page.context.close()
