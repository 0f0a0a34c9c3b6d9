"""report.html holds everything itself, says what segmenter.json says, and shows names as they are."""

from __future__ import annotations

import base64
import io
import re
import shlex
from html.parser import HTMLParser

import pytest
from PIL import Image

from painting import paint
from slime_optimize import Backbone, Settings
from slime_optimize.data.annotations import Example
from slime_optimize.data.validation import Validation
from slime_optimize.method.run import Run
from slime_optimize.method.training import Learned, learn
from slime_optimize.report import report_html

PARTS = ("background", "<b>ear</b>", 'a "tail" & more')
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags with their attributes, the text between them, and whether every tag is closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture(scope="module")
def made(loaded: dict[str, Backbone]) -> tuple[Run, Learned, str]:
    examples = [Example(name=f"<i>{i}", image_HW3=paint(i)[0], mask_HW=paint(i)[1], digest=str(i)) for i in range(3)]
    run = Run(
        backbone=loaded["sd15"],
        examples=tuple(examples[:2]),
        parts=PARTS,
        settings=Settings(steps=20, threshold=0.0, learning_rate=0.25),
        validation=Validation(examples=(examples[2],), every=10, held_back=True),
    )
    learned = learn(run, progress=False)
    return run, learned, report_html(learned, run, "cars", shlex.join(["python", "optimize/run.py", "--parts", *PARTS]))


def test_nothing_is_fetched_and_nothing_runs(made: tuple[Run, Learned, str]) -> None:
    page = Page(made[2])
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert tag == "img" and value is not None and value.startswith("data:image/png;base64,")
    assert not re.search(r"https?://|url\(|@import", made[2])


def test_every_picture_can_be_opened(made: tuple[Run, Learned, str]) -> None:
    run, learned, page = made
    sources = [attributes["src"] or "" for tag, attributes in Page(page).tags if tag == "img"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(each.partition(",")[2]))) for each in sources]
    assert all(picture.format == "PNG" for picture in pictures)
    assert pictures[0].width > 1000  # the curves
    shown = {*learned.snapshots, learned.segmenter.metrics["step"]}
    assert list(learned.snapshots) == [0, 1, 2, 5, 10, 20]
    assert len(pictures) == 1 + len(shown) + 3 * len(run.examples)
    assert all(picture.size == (90, 70) for picture in pictures[1:])


def test_names_are_escaped(made: tuple[Run, Learned, str]) -> None:
    page = Page(made[2])
    for name in (*PARTS, "<i>0", "<i>1", "<i>2"):
        assert name in page.text
    assert "i" not in {tag for tag, attributes in page.tags if not attributes}
    assert "<b>ear" not in made[2] and "<i>0" not in made[2]


def test_it_says_what_the_segmenter_says(made: tuple[Run, Learned, str]) -> None:
    run, learned, page = made
    text, metrics = " ".join(Page(page).text.split()), learned.segmenter.metrics
    for kind in ("training", "validation"):
        for value in (metrics[kind]["mean_iou"], *metrics[kind]["iou"].values()):
            assert f"{value:.1f}" in text
    assert f"2 annotated images, 20 steps; embeddings of step {metrics['step']}," in text
    assert "the best of 2 on the image held back, <i>2" in text
    for told in (run.backbone.hash, run.backbone.id, learned.segmenter.versions["torch"], "optimize/run.py --parts"):
        assert told in text
    assert "learning_rate 0.25 0.1" in text  # beside the preset's
    assert all(name in text for name in run.settings.as_json())
    assert text.count("· chosen") == 1
