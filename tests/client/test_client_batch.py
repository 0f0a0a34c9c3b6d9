"""slime-segment over many images: going on where it was stopped, lines for scripts, stdin, listing."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fake_triton import FakeTriton, right_half
from PIL import Image
from waiting import together, until

import slime_client
from slime_client.cli import main
from slime_client.jobs import JOURNAL

RUN = "import sys; from slime_client.cli import main; sys.exit(main())"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (number + 2, 5)).save(folder / f"{number:02}.png")
    return folder


def words(server: FakeTriton, out: Path, *more: object) -> list[str]:
    return ["--url", server.url, "--segmenter", "car", "--out", str(out), *map(str, more)]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_killed_run_goes_on(
    server: FakeTriton, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def six_and_no_more(data: bytes) -> npt.NDArray[np.uint8]:
        server.delay_s = 20 if len(server.received) >= 6 else 0
        return right_half(data)

    server.mask_of = six_and_no_more
    command = [sys.executable, "-c", RUN, *words(server, out, photos, "--concurrency", 2)]
    environment = {**os.environ, "PYTHONPATH": str(Path(slime_client.__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    journal_path = out / JOURNAL
    until(lambda: journal_path.exists() and journal_path.read_bytes().count(b"\n") >= 4, "four images done")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with (out / JOURNAL).open("ab") as journal:
        journal.write(b'{"stem": "11", "image": "')
    done = (out / JOURNAL).read_bytes().count(b"\n")
    assert 4 <= done < 12
    first = json.loads((out / JOURNAL).read_bytes().splitlines()[0])["stem"]
    cut = out / f"{first}.png"
    cut.write_bytes(cut.read_bytes()[:-3])

    until(lambda: not server.flying, "the end of what the killed process asked for")
    server.mask_of, server.delay_s, before = right_half, 0, len(server.received)
    assert main(words(server, out, photos)) == 0
    assert len(server.received) - before == 12 - done + 1
    assert f"{done - 1} of 12 images were done before" in capsys.readouterr().err
    assert len(list(out.glob("[!.]*"))) == 24
    for number in range(12):
        with Image.open(out / f"{number:02}.png") as mask:
            assert mask.size == (number + 2, 5)
    assert main(words(server, out, photos)) == 0
    assert len(server.received) - before == 12 - done + 1


def test_what_is_done_again(server: FakeTriton, tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"

    def asked(*more: object) -> int:
        before = len(server.received)
        assert main(words(server, out, photos, *more)) == 0
        return len(server.received) - before

    assert [asked(), asked()] == [12, 0]
    assert asked("--overwrite") == 12
    assert asked("--format", "npz") == 12  # of which there was none
    assert asked() == 0
    Image.new("RGB", (3, 3)).save(photos / "00.png")
    assert asked() == 1
    (out / "05-overlay.jpg").unlink()
    assert asked("--no-overlay") == 0
    assert asked() == 1
    server.models["horse"] = dict(server.models["car"])
    assert asked("--segmenter", "horse") == 12
    server.models["horse"]["parts"] = '["background", "mane", "tail"]'
    assert asked("--segmenter", "horse") == 12


def test_another_image_of_the_same_name_is_not_taken_for_done(server: FakeTriton, tmp_path: Path) -> None:
    for folder, width in (("a", 4), ("b", 6)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (width, 4)).save(tmp_path / folder / "x.png")
        assert main(words(server, tmp_path / "out", tmp_path / folder / "x.png")) == 0
    with Image.open(tmp_path / "out" / "x.png") as mask:
        assert mask.width == 6


def test_a_line_of_json_for_each_image(
    server: FakeTriton, tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    assert main(words(server, tmp_path / "out", photo, bad, "--json")) == 1
    told = {line["image"]: line for line in lines(capsys.readouterr().out)}
    done = told[str(photo.resolve())]
    assert (done["width"], done["height"], done["segmenter"]) == (20, 10, "car")
    assert dict(zip(done["parts"], done["pixels"], strict=True)) == {"background": 100, "body": 100, "wheel": 0}
    assert done["results"] == {"palette": "photo.png", "overlay": "photo-overlay.jpg"}
    assert told[str(bad)]["code"] == "INVALID_ARGUMENT"
    assert main(words(server, tmp_path / "out", photo, "--json")) == 0
    (again,) = lines(capsys.readouterr().out)
    assert again["skipped"]


class Stdin:
    """What the command reads from."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def read(self) -> str:
        return self.buffer.read().decode()


def test_an_image_on_stdin(server: FakeTriton, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):  # never taken for done: another may come in
        monkeypatch.setattr("sys.stdin", Stdin(photo.read_bytes()))
        assert main(words(server, tmp_path / "out", "-")) == 0
    assert server.received == [photo.read_bytes()] * 2
    with Image.open(tmp_path / "out" / "stdin.png") as mask:
        assert np.asarray(mask)[:, 10:].all()


def test_an_empty_stdin(
    server: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(b""))
    assert main(words(server, tmp_path / "out", "-")) == 2
    assert "stdin is empty" in capsys.readouterr().err


def test_a_list_of_images(server: FakeTriton, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{photos / '00.png'}\n\n{photos / '01.png'}\n"
    (tmp_path / "list.txt").write_text(text)
    assert main(words(server, tmp_path / "a", "--list", tmp_path / "list.txt")) == 0
    monkeypatch.setattr("sys.stdin", Stdin(text.encode()))
    assert main(words(server, tmp_path / "b", "--list", "-", photos / "02.png")) == 0
    assert len(list((tmp_path / "a").glob("*.png"))) == 2
    assert len(list((tmp_path / "b").glob("*.png"))) == 3
    assert main(words(server, tmp_path / "c", "--list", tmp_path / "nowhere")) == 2


def test_several_are_in_flight_and_no_more(server: FakeTriton, tmp_path: Path, photos: Path) -> None:
    server.mask_of = together(4)
    assert main(words(server, tmp_path / "out", photos, "--concurrency", 4)) == 0
    assert server.most_flying == 4
    assert main(words(server, tmp_path / "out", photos, "--concurrency", 0)) == 2


def test_the_summary_has_a_rate_where_it_means_something(
    server: FakeTriton, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def summary(out: str, *arguments: Any) -> str:
        main(words(server, tmp_path / out, *arguments, "--concurrency", 1))
        return capsys.readouterr().err.splitlines()[-1]

    assert re.search(r" s \(\d+\.\d images/s\) -> ", summary("quick", photos))
    assert not re.search("images/s|an image", summary("one", photos / "00.png"))
    for name in ("x.png", "y.png", "z.png"):
        (tmp_path / name).write_bytes(b"no picture")
    assert not re.search(
        "images/s|an image", summary("none", *(tmp_path / name for name in ("x.png", "y.png", "z.png")))
    )
    server.delay_s = 1.1
    assert re.search(r" s \(1\.\d s an image\) -> ", summary("slow", photos / "00.png", photos / "01.png"))


def test_listing(server: FakeTriton, capsys: pytest.CaptureFixture[str]) -> None:
    server.registry = {"cow": {"parts": ["background", "tail"], "colours": [[0, 0, 0], [1, 2, 3]], "model": "shared_1"}}
    server.models["car"] |= {"version": "3", "published": "2026-11-27T09:35:03+00:00"}
    assert main(["list", "--url", server.url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "car  baked   version   3  2026-11-27 09:35  background, body, wheel",
        "cow  shared  version   -  -                 background, tail",
    ]
    assert main(["list", "--url", server.url, "--json"]) == 0
    assert [line["name"] for line in lines(capsys.readouterr().out)] == ["car", "cow"]
    server.models.clear()
    server.registry.clear()
    assert main(["list", "--url", server.url]) == 0
    assert "serves no segmenter" in capsys.readouterr().err


def test_info_of_one_in_the_shared_form(server: FakeTriton, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"name": "cow", "parts": ["background"], "colours": [[0, 0, 0]], "model": "shared_1", "form": "shared"}
    server.registry = {"cow": said}
    assert main(["info", "cow", "--url", server.url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name: cow",
        "form: shared",
        "model: shared_1",
        "parts:",
        "    0  #000000  background",
    ]


def test_listing_takes_the_key(server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.wanted_key = ("triton-grpc-protocol-slime-key", "0123456789abcdef")
    (tmp_path / "key").write_text("0123456789abcdef\n")
    assert main(["list", "--url", server.url]) == 2
    assert "wants a key" in capsys.readouterr().err
    assert main(["list", "--url", server.url, "--admin-key-file", str(tmp_path / "key")]) == 0


def test_nobody_reads_what_it_prints(server: FakeTriton) -> None:
    words = [sys.executable, "-c", RUN, "list", "--url", server.url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 130)


def test_info(server: FakeTriton, capsys: pytest.CaptureFixture[str]) -> None:
    server.models["car"]["image_size"] = "256"
    assert main(["info", "car", "--url", server.url]) == 0
    printed = capsys.readouterr().out
    assert "  1  #c81e1e  body" in printed
    assert "image_size: 256" in printed
    assert main(["info", "car", "--url", server.url, "--json"]) == 0
    (told,) = lines(capsys.readouterr().out)
    assert (told["form"], told["image_size"], told["parts"][2]) == ("baked", "256", "wheel")
    assert main(["info", "cart", "--url", server.url]) == 2
    assert "it serves: car" in capsys.readouterr().err
