"""`slime segment clip.mp4`: what it writes, how it goes on where it was stopped, how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from clips import Here, clip, picture
from fake_triton import FakeTriton
from PIL import Image
from waiting import until

from slime_client import SegmenterError
from slime_client.cli import _segment_parser, main
from slime_client.video import command
from slime_client.video import frames as following

av = pytest.importorskip("av")
FRAMES = 230


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than two pieces of frames, and of an odd width."""
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    return clip(path, (picture(number, 25, 16) for number in range(FRAMES)))


@pytest.fixture
def short(tmp_path: Path) -> Path:
    return clip(tmp_path / "short.mp4", map(picture, range(6)))


class Mean:
    """A smoother whose every mask depends on all frames before, and comes when two more have come."""

    def __init__(self, how: str, settings: object = None) -> None:
        self._mean: npt.NDArray[np.float32] | None = None
        self._waiting: list[npt.NDArray[np.uint8]] = []

    def history(self) -> dict[str, npt.NDArray[Any]]:
        assert not self._waiting
        return {} if self._mean is None else {"mean": self._mean}

    def go_on(self, history: Mapping[str, npt.NDArray[Any]]) -> None:
        self._mean = history.get("mean")

    def __call__(self, image: npt.NDArray[np.uint8], scores: npt.NDArray[np.float32]) -> list[npt.NDArray[np.uint8]]:
        self._mean = scores if self._mean is None else 0.9 * self._mean + 0.1 * scores
        labels = self._mean.argmax(0).astype(np.uint8).repeat(2, 0).repeat(2, 1)
        self._waiting.append(labels[: image.shape[0], : image.shape[1]])
        return [self._waiting.pop(0)] if len(self._waiting) > 2 else []

    def rest(self) -> list[npt.NDArray[np.uint8]]:
        rest, self._waiting = self._waiting, []
        return rest


def run(server: FakeTriton, out: Path, *words: object) -> int:
    return main(["--url", server.url, "--segmenter", "car", "--out", str(out), *map(str, words)])


def wanted(out: Path, source: Path, *words: str) -> command.Wanted:
    """What these words of a command line want."""
    out.mkdir(exist_ok=True)
    words = (str(source), "--segmenter", "car", "--out", str(out), *words)
    return command.Wanted.by(_segment_parser("slime").parse_args(words))


def here(out: Path, source: Path, *words: str) -> Here:
    """Segment a clip in this process; return the segmenter, which knows what it was asked."""
    with Here() as car:
        assert command.run(car, wanted(out, source, *words))  # type: ignore[arg-type]
    return car


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def film_of(path: Path) -> list[tuple[float, tuple[int, int]]]:
    """When each picture of a film is shown, and its size."""
    with av.open(str(path)) as container:
        return [(round(frame.time, 3), (frame.width, frame.height)) for frame in container.decode(video=0)]


def test_a_palette_png_for_each_frame(
    server: FakeTriton, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(server, out, short) == 0
    assert names(out) == [f"{number:06}.png" for number in range(6)] + ["frames.jsonl"]
    with Image.open(out / "000003.png") as mask:
        assert mask.mode == "P" and mask.size == (32, 16) and set(np.unique(np.asarray(mask))) == {0, 1}
    assert "6 frames in" in capsys.readouterr().err
    first, *lines, last = [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]
    assert first["smooth"] == "none" and last == {"end": 6, "damage": ""}
    assert [(line["frame"], line["time"]) for line in lines] == [(number, number / 10) for number in range(6)]
    assert lines[0]["pixels"] == [256, 256, 0]


def test_every_format(server: FakeTriton, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    formats = [word for name in ("palette", "npz", "coco", "overlay-mp4") for word in ("--format", name)]
    assert run(server, out, short, *formats, "--stride", 2, "--json") == 0
    stems = ["000000", "000002", "000004"]
    wanted = [*(f"{stem}.{end}" for stem in stems for end in ("npz", "png"))]
    assert names(out) == sorted([*wanted, "coco", "coco.json", "frames.jsonl", "overlay.mp4"])
    coco = json.loads((out / "coco.json").read_text())
    assert [(image["id"], image["file_name"]) for image in coco["images"]] == [
        (place, f"{stem}.png") for place, stem in enumerate(stems, 1)
    ]
    assert [annotation["image_id"] for annotation in coco["annotations"]] == [1, 2, 3]
    assert film_of(out / "overlay.mp4") == [(0.0, (32, 16)), (0.2, (32, 16)), (0.4, (32, 16))]
    assert [json.loads(line)["frame"] for line in capsys.readouterr().out.splitlines()] == [0, 2, 4]


def test_an_overlay_shows_the_parts_and_keeps_the_times(tmp_path: Path) -> None:
    """Of a clip of variable rate, turned, and of odd size, which a film of H.264 cannot have."""
    ticks = [0, 1, 5, 6, 20]
    source = clip(
        tmp_path / "odd.mp4", (picture(n, 31, 17) for n in range(5)), ticks=lambda place: ticks[place], rotation=90
    )
    here(tmp_path / "out", source, "--format", "overlay-mp4")
    assert film_of(tmp_path / "out" / "overlay.mp4") == [(tick / 10, (18, 32)) for tick in ticks]
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    # The white square has come to the lower left. It is part 2, which is blue.
    assert first[30, 1, 2] > first[30, 1, 0] + 60
    assert abs(first[2, 14]).max() < 30


def test_a_size_that_changes_keeps_masks_at_their_own_and_the_overlay_at_the_first(tmp_path: Path) -> None:
    first = clip(tmp_path / "a.h264", map(picture, range(3)), form="h264")
    second = clip(tmp_path / "b.h264", (picture(each, 16, 48) for each in range(2)), form="h264")
    (tmp_path / "both.h264").write_bytes(first.read_bytes() + second.read_bytes())
    out = tmp_path / "out"
    here(out, tmp_path / "both.h264", "--format", "palette", "--format", "overlay-mp4")
    sizes = []
    for number in range(5):
        with Image.open(out / f"{number:06}.png") as mask:
            sizes.append(mask.size)
    assert sizes == [(32, 16)] * 3 + [(16, 48)] * 2
    assert [size for _, size in film_of(out / "overlay.mp4")] == [(32, 16)] * 5


def test_a_folder_and_a_stack_with_video_are_clips(server: FakeTriton, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    pages = [Image.fromarray(picture(number)) for number in range(3)]
    for number, page in enumerate(pages):
        page.save(frames / f"shot-{number}.png")
    first, *others = (page.copy() for page in pages)
    first.save(tmp_path / "volume.tif", save_all=True, append_images=others)
    assert run(server, tmp_path / "a", frames, "--video") == 0
    assert names(tmp_path / "a") == ["frames.jsonl", "shot-0.png", "shot-1.png", "shot-2.png"]
    assert run(server, tmp_path / "b", tmp_path / "volume.tif", "--video") == 0
    assert names(tmp_path / "b") == ["000000.png", "000001.png", "000002.png", "frames.jsonl"]


def everything(smooth: str) -> list[str]:
    return ["--smooth", smooth, *(w for f in ("palette", "coco", "overlay-mp4") for w in ("--format", f))]


def killed_after(frames: int, source: Path, out: Path, words: list[str]) -> None:
    """A run that ends after so many frames, with no time for anything, as a kill leaves it."""

    class Killed(BaseException):
        pass

    def closed(results: Any, complete: bool, damage: str = "") -> None:
        results._pool.shutdown()
        results._file.close()
        if results._overlay:
            results._overlay._file.close()

    done = command._Progress.done

    def end(progress: Any, at: float) -> None:
        done(progress, at)
        if progress._frames == frames:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, Here() as car, pytest.raises(Killed):
        patch.setattr(command.Results, "close", closed)
        patch.setattr(command._Progress, "done", end)
        command.run(car, wanted(out, source, *words))  # type: ignore[arg-type]
    with (out / "frames.jsonl").open("ab") as file:
        file.write(b'{"frame": 99')  # a line that was being written


@pytest.mark.parametrize(
    ("words", "stops"),
    [
        (everything("mean"), [40, 170, 25]),
        ([*everything("none"), "--skip-still"], [201]),
        ([], [70, 50]),
    ],
    ids=["smoothed", "reused", "each frame alone"],
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], stops: list[int]
) -> None:
    monkeypatch.setattr(following, "Smoother", Mean)
    here(tmp_path / "whole", film, *words)
    for frames in stops:
        killed_after(frames, film, tmp_path / "stopped", words)
    again = here(tmp_path / "stopped", film, *words)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert len(again.asked) <= (FRAMES - sum(stops) + 12 if not words else FRAMES - 100)


def test_a_smoothed_run_goes_on_with_what_the_smoother_knew(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    film = clip(tmp_path / "film.mp4", (np.roll(picture(number // 9, 48, 32), number, axis=1) for number in range(115)))
    words = ["--smooth", "flow"]
    here(tmp_path / "whole", film, *words)
    killed_after(108, film, tmp_path / "stopped", words)
    assert len(here(tmp_path / "stopped", film, *words).asked) == 15
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def started(server: FakeTriton, out: Path, *words: object) -> subprocess.Popen[str]:
    """The command in a process of its own, which cannot finish: the server takes ever more time."""
    server.delay_s = 0.1
    # A shell that runs tests in the background has them ignore Ctrl-C, and what they start does so, too.
    usual = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    script = usual + "from slime_client.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", script, "--url", server.url, "--segmenter", "car", "--out", str(out)]
    process = subprocess.Popen([*line, *map(str, words)], stderr=subprocess.PIPE, text=True)
    journal = out / "frames.jsonl"
    until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 30, "30 frames")
    server.delay_s = 5.0
    return process


def test_a_kill_in_the_middle_then_the_same_files(server: FakeTriton, film: Path, tmp_path: Path) -> None:
    assert run(server, tmp_path / "whole", film) == 0
    with started(server, tmp_path / "stopped", film) as process:
        process.kill()
    server.delay_s = 0.0
    (tmp_path / "stopped" / f".000031.png.{'0' * 32}.tmp").touch()  # as a kill leaves it that comes while it is written
    assert 30 < len(names(tmp_path / "stopped")) < FRAMES
    before = len(server.received)
    assert run(server, tmp_path / "stopped", film) == 0
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert len(server.received) - before < FRAMES - 25


def test_ctrl_c_leaves_a_playable_film(server: FakeTriton, film: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "out", ["--format", "overlay-mp4"]
    with started(server, out, film, *words) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in said and "Traceback" not in said
    shown = film_of(out / "overlay.mp4")
    assert 25 < len(shown) < FRAMES and shown[20][0] == 2.0
    server.delay_s = 0.0
    assert run(server, out, film, *words) == 0
    assert len(film_of(out / "overlay.mp4")) == FRAMES


def test_what_is_done_is_not_done_again(short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    here(out, short, "--format", "palette", "--format", "overlay-mp4")
    assert here(out, short, "--format", "palette", "--format", "overlay-mp4").asked == []
    assert "6 frames were done before" in capsys.readouterr().err
    (out / "000002.png").unlink()
    assert len(here(out, short, "--format", "palette", "--format", "overlay-mp4").asked) == 6
    assert (out / "000002.png").exists() and len(film_of(out / "overlay.mp4")) == 6


def test_another_run_in_the_same_folder(short: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    here(out, short)
    with Here() as car, pytest.raises(SegmenterError, match=r"another run, which differs in stride; give another"):
        command.run(car, wanted(out, short, "--stride", "4"))  # type: ignore[arg-type]
    here(out, short, "--stride", "4", "--overwrite")
    assert names(out) == ["000000.png", "000004.png", "frames.jsonl"]


def test_a_cut_off_clip_gives_what_is_there_and_exit_code_1(
    server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    path = clip(tmp_path / "cut.mkv", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(server, tmp_path / "out", path) == 1
    assert (tmp_path / "out" / "000009.png").exists()
    assert run(server, tmp_path / "out", path) == 1
    said = "it is cut off; the frames that could be read have their masks"
    assert capsys.readouterr().err.count(said) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["short.mp4", "other.mp4"], "video: got 2 sources, expected one clip; run once for each"),
        (["short.mp4", "--list", "x"], "video: got --list, expected one clip; run once for each"),
        (["short.mp4", "--freshest"], "short.mp4: is no camera or stream, so every frame of it can be had"),
        (["short.mp4", "--stride", "0"], "stride: got 0, expected a whole number of at least 1"),
        (["nowhere.mp4"], "nowhere.mp4: no such file; check the path"),
        (["out", "--video"], "--out out: is the folder of the frames, expected another"),
    ],
)
def test_bad_command_lines(
    server: FakeTriton,
    short: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Image.fromarray(picture(0)).save("out/a.png")
    assert run(server, Path("out"), *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1
    assert not server.received


def test_the_server_goes_away_and_the_run_goes_on_later(
    server: FakeTriton, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = server.mask_of

    def gone_at_the_third(data: bytes) -> npt.NDArray[np.uint8]:
        if len(server.received) == 3:
            server.vanish()
        return plain(data)

    server.mask_of = gone_at_the_third
    assert run(server, tmp_path / "out", short, "--concurrency", 1, "--timeout", 2) == 2
    assert "error: frame 2: " in capsys.readouterr().err
    assert names(tmp_path / "out") == ["000000.png", "000001.png", "frames.jsonl"]


def test_progress_on_a_terminal(
    server: FakeTriton, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert run(server, tmp_path / "out", short) == 0
    assert "1/6 frames  " in (said := capsys.readouterr().err) and " frames/s  " in said and " s left" in said


def test_local_segmenters_segment_clips_but_smooth_nothing(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from slime_client import Description
    from slime_client.local import LocalSegmenter

    def local(where: str) -> LocalSegmenter:
        told = Description(name="car", parts=("a", "b"), colours=((0, 0, 0), (9, 9, 9)), model="here", about={})
        return LocalSegmenter(description=told, mask_of=lambda image: np.ones((16, 32), np.uint8))

    monkeypatch.setattr(following, "Smoother", Mean)
    words = [str(short), "--local", "car", "--out", str(tmp_path / "out")]
    assert main(words, local=local) == 0
    assert len(names(tmp_path / "out")) == 7
    assert main([*words, "--overwrite", "--smooth", "mean"], local=local) == 2
    assert "gives no scores without a server; smooth nothing, or serve it" in capsys.readouterr().err
