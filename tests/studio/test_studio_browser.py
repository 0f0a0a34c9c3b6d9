"""The page in a real browser: paint a car, learn, correct, publish, segment through the real server, download.

Needs Debian's chromium (`apt install chromium`), which Playwright drives; skipped only where there is none.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from clips import clip
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from studios import Running

from slime_backbone.scene import scene
from slime_client.formats import polygons
from slime_optimize.metrics import confusion, report

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.triton,
    pytest.mark.alone,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
SIDE = 128
PARTS = ("background", "body", "light", "plate", "wheel", "window")
LONG_MS = 400_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window of 1280 x 800 that fails the test for an error on the page."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    errors: list[str] = []
    made = context.new_page()
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.set_default_timeout(60_000)
    yield made
    context.close()
    assert not errors


@pytest.fixture
def running(tmp_path: Path) -> Iterator[list[Running]]:
    started = [Running(tmp_path / "car")]
    yield started
    for each in started:
        each.stop()


def draw(folder: Path, count: int) -> list[Path]:
    """Cars as PNG: the first is the one to be painted."""
    folder.mkdir()
    for index in range(count):
        image = scene("car", "train-1" if index == 0 else "test", index).image
        Image.fromarray(image).save(folder / f"car-{index}.png")
    return sorted(folder.glob("*.png"))


class Hand:
    """A hand on the mouse, over the image that is open: places are in the image's pixels."""

    def __init__(self, page: Page) -> None:
        self.page = page
        box = page.locator("canvas").bounding_box()
        assert box
        self.scale = (min(box["width"], box["height"]) - 16) / SIDE
        self.left = box["x"] + (box["width"] - SIDE * self.scale) / 2
        self.top = box["y"] + (box["height"] - SIDE * self.scale) / 2

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.left + x * self.scale, self.top + y * self.scale

    def drag(self, *points: tuple[float, float]) -> None:
        self.page.mouse.move(*self.at(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(*point), steps=4)
        self.page.mouse.up()

    def polygon(self, points: list[list[float]]) -> None:
        for x, y in points:
            self.page.mouse.click(*self.at(min(max(x, 0.02), SIDE - 0.02), min(max(y, 0.02), SIDE - 0.02)))
        self.page.keyboard.press("Enter")


def corners(ring: list[list[float]], far: float = 0.7) -> list[list[float]]:
    """The corners of a closed outline: no point of it is further than `far` pixels from the lines between them.

    Those that lie so near to the first that a click on them closes the polygon are left out.
    """

    def between(first: int, last: int) -> list[int]:
        start, direction = points[first], points[last] - points[first]
        length = np.hypot(*direction) or 1.0
        offsets = points[first : last + 1] - start
        away = np.abs(direction[0] * offsets[:, 1] - direction[1] * offsets[:, 0]) / length
        if not direction.any():
            away = np.hypot(*offsets.T)
        most = first + int(away.argmax())
        return [*between(first, most), *between(most, last)[1:]] if away.max() > far else [first, last]

    points = np.array(ring)
    kept = points[between(0, len(points) - 1)][:-1]
    while len(kept) > 3 and np.hypot(*(kept[-1] - kept[0])) < 3:
        kept = kept[:-1]
    found: list[list[float]] = kept.tolist()
    return found


def saved(page: Page) -> None:
    expect(page.locator("#saving")).to_have_text("All saved")


def mask_of(running: Running, image: str) -> npt.NDArray[np.uint8]:
    sent = running.client.get(f"/api/images/{image}/mask")
    return np.frombuffer(sent.content, np.uint8).reshape(int(sent.headers["x-height"]), int(sent.headers["x-width"]))


def add_parts(page: Page) -> None:
    for name in PARTS[1:]:
        page.fill("#new-part", name)
        page.press("#new-part", "Enter")
        page.get_by_role("button", name=name, exact=True).wait_for()


def open_image(page: Page, name: str) -> None:
    page.locator("#images, .image").filter(has_text=name).first.click()
    expect(page.locator(".about")).to_contain_text(name)
    ready(page)


def ready(page: Page) -> None:
    """Wait until the image that is opened can be painted."""
    expect(page.locator("#paint canvas")).to_have_attribute("aria-busy", "false")


def begin_to_paint(page: Page, studio: Running, folder: Path) -> Hand:
    """Open the studio's page with one image and all parts, ready to be painted."""
    page.goto(studio.page)
    page.set_input_files("#add-images", draw(folder / "pictures", 1))
    add_parts(page)
    open_image(page, "car-0.png")
    return Hand(page)


def test_the_whole_way(page: Page, running: list[Running], tmp_path: Path) -> None:
    """From nothing to the masks of ten other images: what a person who has never seen the project does."""
    (studio,) = running
    images = draw(tmp_path / "pictures", 11)
    page.goto(studio.page)
    expect(page.get_by_role("heading", name="Paint the parts of one image")).to_be_visible()
    page.set_input_files("#add-images", images)
    expect(page.locator(".image")).to_have_count(11)
    add_parts(page)
    open_image(page, "car-0.png")

    truth = scene("car", "train-1", 0).mask
    hand = Hand(page)
    for number in range(1, len(PARTS)):  # later parts lie inside earlier ones
        page.keyboard.press(str(number))
        page.keyboard.press("p")
        for outline in polygons(truth == number):
            if len(points := corners(outline[0])) > 2:
                hand.polygon(points)
    page.keyboard.press("b")
    page.keyboard.press("1")
    hand.drag((60.5, 100.5), (61.5, 100.5))
    page.keyboard.press("Control+z")
    saved(page)
    painted = report([confusion(truth, mask_of(studio, "car-0"), len(PARTS))], PARTS)
    assert painted.mean > 80

    page.get_by_role("link", name="Learn").click()
    page.fill("#steps", "20")
    page.click("#learn-anew")
    expect(page.get_by_role("article", name="Learn anew from 1 image: done")).to_be_visible(timeout=LONG_MS)
    assert page.locator("#learn figure img").count() >= 3
    expect(page.get_by_role("article", name="Segment 11 images with v1: done")).to_be_visible(timeout=LONG_MS)

    page.get_by_role("link", name="Look").click()
    expect(page.locator("#look .card")).to_have_count(11)
    shown = [float(text.split()[1]) for text in page.locator("#look .card small").all_inner_texts()]
    assert shown == sorted(shown)
    other = page.locator("#look .picture").filter(has=page.locator("img[alt^='car-3.png']"))
    other.click()
    expect(page.locator(".about")).to_contain_text("car-3.png")
    ready(page)
    page.keyboard.press("2")
    Hand(page).drag((3.5, 3.5), (9.5, 3.5))
    saved(page)
    expect(page.locator("#example")).to_be_checked()
    saved(page)
    assert mask_of(studio, "car-3")[3, 3] == 2 and len(np.unique(mask_of(studio, "car-3"))) > 2
    page.get_by_role("link", name="Look").click()
    page.click("#look-learn-on")
    expect(page.get_by_role("article", name="Learn on from v1 from 2 images: running")).to_be_visible(timeout=LONG_MS)
    page.locator("[aria-label='Cancel: Learn on from v1 from 2 images']").click()
    expect(page.get_by_role("article", name="Learn on from v1 from 2 images: cancelled")).to_be_visible(timeout=LONG_MS)

    page.get_by_role("link", name="Publish").click()
    page.check("#publish-force")
    page.click("#publish-now")
    expect(page.get_by_role("heading", name="car, version 1")).to_be_visible(timeout=LONG_MS)
    expect(page.get_by_text("of the mask's pixels agree")).to_be_visible()
    page.click("#server-start")
    expect(page.get_by_text("The server answers at")).to_be_visible(timeout=LONG_MS)
    page.set_input_files("#try-images", images[1:])
    expect(page.locator("#message")).to_contain_text("10 images segmented.", timeout=LONG_MS)
    expect(page.locator("#publish .card")).to_have_count(10)
    contents = {}
    for form in ("PNG", "COCO", "GeoJSON", "NPZ"):
        with page.expect_download() as download:
            page.get_by_role("link", name=f"Download car-1.png as {form}").click()
        contents[form] = Path(download.value.path()).read_bytes()
        assert download.value.suggested_filename.startswith("car-1.")
    with Image.open(io.BytesIO(contents["PNG"])) as mask:
        assert mask.size == (SIDE, SIDE) and mask.mode == "P"
    assert json.loads(contents["COCO"])["images"][0]["file_name"] == "car-1.png"
    assert json.loads(contents["GeoJSON"])["type"] == "FeatureCollection"
    assert f'"{studio.state()["server"]["url"]}", "car"' in page.locator("#publish pre").first.inner_text()

    film = clip(tmp_path / "drive.mp4", [np.asarray(Image.open(each).convert("RGB")) for each in images[:5]])
    page.set_input_files("#try-images", film)
    expect(page.get_by_role("article", name="Segment drive.mp4 with car: done")).to_be_visible(timeout=LONG_MS)
    shown = page.locator("#publish video")
    page.wait_for_function("video => video.readyState > 0 && video.duration > 0.3", arg=shown.element_handle())

    page.click("#publish-now")  # again, while it serves: a second version, and back
    expect(page.get_by_role("heading", name="car, version 2")).to_be_visible(timeout=LONG_MS)
    page.get_by_role("button", name="Serve 1 again").click()
    expect(page.get_by_role("heading", name="car, version 3 (the content of version 1)")).to_be_visible(timeout=LONG_MS)


def test_painting_is_exact_and_outlives_reloads_other_tabs_and_kills(
    page: Page, running: list[Running], tmp_path: Path
) -> None:
    (studio,) = running
    hand = begin_to_paint(page, studio, tmp_path)
    page.locator("#size").fill("1")
    page.keyboard.press("1")
    hand.drag((10.5, 20.5), (30.5, 20.5))  # from the middle of a pixel to that of another
    saved(page)
    wanted = np.zeros((SIDE, SIDE), np.uint8)
    wanted[20, 10:31] = 1
    assert np.array_equal(mask_of(studio, "car-0"), wanted)
    page.keyboard.press("g")
    page.keyboard.press("2")
    page.mouse.click(*hand.at(20.5, 20.5))
    saved(page)
    wanted[20, 10:31] = 2
    assert np.array_equal(mask_of(studio, "car-0"), wanted)
    page.keyboard.press("e")
    hand.drag((10.5, 20.5), (10.5, 20.5))
    saved(page)
    wanted[20, 10] = 0
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+Shift+z")
    saved(page)
    assert np.array_equal(mask_of(studio, "car-0"), wanted)

    page.reload()  # in the middle of the work, with a stroke that was just painted
    open_image(page, "car-0.png")
    page.locator("#size").fill("1")
    page.keyboard.press("3")
    hand.drag((50.5, 60.5), (52.5, 60.5))
    page.reload()
    wanted[60, 50:53] = 3
    open_image(page, "car-0.png")
    assert np.array_equal(mask_of(studio, "car-0"), wanted)

    other = page.context.new_page()  # a second tab paints on the same image
    other.goto(studio.base)
    open_image(other, "car-0.png")
    other.locator("#size").fill("1")
    other.keyboard.press("4")
    Hand(other).drag((70.5, 10.5), (70.5, 12.5))
    saved(other)
    wanted[10:13, 70] = 4
    page.bring_to_front()
    page.locator("#size").fill("1")
    page.keyboard.press("5")
    hand.drag((80.5, 10.5), (80.5, 12.5))
    saved(page)
    wanted[10:13, 80] = 5
    assert np.array_equal(mask_of(studio, "car-0"), wanted)
    other.close()

    studio.kill()  # the page keeps what it cannot save, and saves it once there is a studio again
    hand.drag((90.5, 90.5), (92.5, 90.5))
    expect(page.locator("#saving")).to_contain_text("Not saved yet")
    port = studio.base.rpartition(":")[2]
    again = Running(studio.project, "--port", port)
    running.append(again)
    saved(page)
    wanted[90, 90:93] = 5
    assert np.array_equal(mask_of(again, "car-0"), wanted)


def test_a_studio_killed_while_learning_is_found_again_by_its_page(
    page: Page, running: list[Running], tmp_path: Path
) -> None:
    (studio,) = running
    hand = begin_to_paint(page, studio, tmp_path)
    for number in range(1, len(PARTS)):
        page.keyboard.press(str(number))
        hand.drag((20 * number, 30.5), (20 * number, 90.5))
    saved(page)
    page.get_by_role("link", name="Learn").click()
    page.fill("#steps", "12")
    page.click("#learn-anew")
    expect(page.locator(".job.running progress[value]")).to_be_visible(timeout=LONG_MS)
    studio.kill()
    running.append(Running(studio.project, "--port", studio.base.rpartition(":")[2]))
    expect(page.get_by_role("article", name="Learn anew from 1 image: done")).to_be_visible(timeout=LONG_MS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_small_screen_and_the_keyboard(scheme: str, browser: Browser, running: list[Running], tmp_path: Path) -> None:
    """390 pixels wide: nothing is cut off sideways; every control has a name; the brush works from the keyboard."""
    (studio,) = running
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(studio.page)
    page.set_input_files("#add-images", draw(tmp_path / "pictures", 1))
    add_parts(page)
    for step in ("Paint", "Learn", "Look", "Publish"):
        page.get_by_role("link", name=step).click()
        assert page.locator("body").evaluate("body => body.scrollWidth") <= 390
        nameless = page.locator("button:visible, input:visible, select:visible, a:visible").evaluate_all(
            "all => all.filter(each => !each.innerText?.trim() && !each.getAttribute('aria-label')"
            " && !each.labels?.length).map(each => each.outerHTML)"
        )
        assert nameless == []
    page.get_by_role("link", name="Paint").click()
    page.locator("#size").fill("3")
    page.locator("canvas").focus()
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    saved(page)
    assert np.count_nonzero(mask_of(studio, "car-0") == 1) == 9
    context.close()


def test_one_finger_paints_and_two_move_and_zoom(browser: Browser, running: list[Running], tmp_path: Path) -> None:
    """What the first finger began to do is taken back when the second comes, whatever the tool."""
    (studio,) = running
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    begin_to_paint(page, studio, tmp_path)
    devices = context.new_cdp_session(page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        devices.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    def stroke(hand: Hand, row: float, left: int, right: int) -> None:
        touch("Start", hand.at(left + 0.5, row))
        for column in range(left + 1, right + 1):
            touch("Move", hand.at(column + 0.5, row))
        touch("End")

    def painted(wanted: npt.NDArray[np.uint8]) -> None:
        """Chromium takes note of a touch before the page does, so "All saved" may still be of the one before."""
        deadline = time.monotonic() + 60
        while not np.array_equal(mask_of(studio, "car-0"), wanted):
            assert time.monotonic() < deadline, np.argwhere(mask_of(studio, "car-0") != wanted)
            page.wait_for_timeout(50)

    def press(button: Locator) -> None:
        """Without a tap, which Chromium may take for the end of the gesture before it."""
        button.evaluate("button => button.click()")

    def ready_hand(tool: str) -> Hand:
        press(page.locator(f"#tool-{tool}"))
        press(page.get_by_role("button", name="Fit"))
        page.locator("canvas").scroll_into_view_if_needed()
        return Hand(page)

    page.locator("#size").fill("1")
    page.get_by_role("button", name="body", exact=True).tap()
    stroke(ready_hand("brush"), 30.5, 20, 60)
    wanted = np.zeros((SIDE, SIDE), np.uint8)
    wanted[30, 20:61] = 1
    painted(wanted)

    for tool in ("polygon", "fill", "brush"):
        hand = ready_hand(tool)
        touch("Start", hand.at(54, 64))
        touch("Start", hand.at(54, 64), hand.at(74, 64))
        for step in range(1, 11):  # apart, to twice the distance
            touch("Move", hand.at(54 - step, 64), hand.at(74 + step, 64))
        for step in range(1, 17):  # and on to the right
            touch("Move", hand.at(44 + step, 64), hand.at(84 + step, 64))
        touch("End")
    # What was in the middle is 16 pixels to the right, and twice as large.
    hand.left, hand.top = hand.at(80 - 2 * 64, 64 - 2 * 64)
    hand.scale *= 2
    stroke(hand, 40.5, 50, 70)
    wanted[40, 50:71] = 1
    painted(wanted)

    light = page.get_by_role("button", name="light", exact=True)
    press(light)
    expect(light).to_have_attribute("aria-pressed", "true")
    hand = ready_hand("fill")
    touch("Start", hand.at(20.5, 30.5))
    touch("End")
    wanted[30, 20:61] = 2
    painted(wanted)
    context.close()
