"""slime-segment: what it writes, what it says, how it ends."""

import io
import socket
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from fake_triton import FakeTriton, Refusal
from PIL import Image

from slime_client.cli import main


def make(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 90, 90)).save(path)
    return path


def run(server: FakeTriton, out: Path, *arguments: object) -> int:
    return main(["--url", server.url, "--segmenter", "car", "--out", str(out), *map(str, arguments)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_files_folders_and_globs(server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make(tmp_path / "one.jpg")
    make(tmp_path / "folder/two.PNG")
    (tmp_path / "folder/notes.txt").touch()
    make(tmp_path / "deep/er/three.webp")
    out = tmp_path / "new/out"
    assert run(server, out, one, one, tmp_path / "folder", tmp_path / "deep/**/*.webp") == 0
    stems = ("one", "three", "two")
    assert names(out) == sorted([f"{stem}.png" for stem in stems] + [f"{stem}-overlay.jpg" for stem in stems])
    with Image.open(out / "one.png") as mask, Image.open(out / "one-overlay.jpg") as overlay:
        assert mask.mode == "P"
        assert mask.size == overlay.size == (8, 6)
        np.testing.assert_array_equal(np.unique(np.asarray(mask)), [0, 1])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "3 of 3 images" in printed.err


def test_no_overlay(server: FakeTriton, tmp_path: Path) -> None:
    assert run(server, tmp_path / "out", make(tmp_path / "a.jpg"), "--no-overlay") == 0
    assert names(tmp_path / "out") == ["a.png"]


def test_a_line_per_failure_and_the_rest_goes_on(
    server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    missing = tmp_path / "missing.jpg"
    assert run(server, tmp_path / "out", bad, missing, make(tmp_path / "good.jpg"), "--concurrency", 1) == 1
    assert names(tmp_path / "out") == ["good-overlay.jpg", "good.png"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in lines[:2]] == [
        f"error: {bad}: refused by segmenter 'car': image: not a JPEG, PNG or WebP",
        f"error: {missing}: no such file",
    ]
    assert lines[2].startswith("1 of 3 images")
    assert "2 failed" in lines[2]


def test_equal_stems_do_not_overwrite_each_other(
    server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [
        make(tmp_path / name, (n + 3, 4)) for n, name in enumerate(("a/x.jpg", "b/x.jpg", "b/X.png", "c/x-2.jpg"))
    ]
    assert run(server, tmp_path / "out", *images, "--no-overlay") == 0
    assert names(tmp_path / "out") == ["X-4.png", "x-2.png", "x-3.png", "x.png"]
    widths = {}
    for path in (tmp_path / "out").glob("*.png"):
        with Image.open(path) as mask:
            widths[path.name] = mask.width
    assert widths == {"x.png": 3, "x-3.png": 4, "X-4.png": 5, "x-2.png": 6}
    assert f"note: {images[1]} -> x-3.*" in capsys.readouterr().err


def test_results_never_replace_the_images(server: FakeTriton, tmp_path: Path) -> None:
    image = make(tmp_path / "x.png")
    before = image.read_bytes()
    assert run(server, tmp_path, image) == 2
    assert run(server, tmp_path, tmp_path) == 2
    assert names(tmp_path) == ["x.png"]
    assert image.read_bytes() == before
    assert not server.received


def test_nothing_to_do(server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server, tmp_path / "out", tmp_path / "*.jpg") == 2
    assert "no images found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["a.jpg"], ["--segmenter", "car"], ["--timeout", "soon"], ["list", "car"], ["info"], ["--format", "gif"]],
)
def test_a_bad_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments, prog="slime segment")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "slime segment" in error


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--ca", "--tls-ca"),
        ("--certificate", "--tls-cert"),
        ("--key", "--tls-key"),
        ("--access-key", "--admin-key-file"),
        ("--key-file", "--admin-key-file"),
    ],
)
def test_options_under_their_old_names(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["list", old, "file"])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {old} has another name now: {new}") and error.count("\n") == 1


def test_bad_options(server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make(tmp_path / "a.jpg")
    assert run(server, tmp_path / "out", image, "--timeout", "-1") == 2
    assert run(server, tmp_path / "out", image, "--segmenter", "cart") == 2
    assert run(server, image, image) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in errors] == [True] * 3
    assert "it serves: car" in errors[1]
    assert "cannot be made" in errors[2]


def test_nothing_given(server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server, tmp_path / "out") == 2
    assert "give image files, folders, globs or -" in capsys.readouterr().err


def test_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{unused.getsockname()[1]}"
        arguments = ["--url", url, "--segmenter", "car", "--out", str(tmp_path / "out")]
        assert main([*arguments, str(make(tmp_path / "a.jpg"))]) == 2
    assert capsys.readouterr().err.startswith(f"error: {url}: no Triton server answers")


def test_the_server_goes_away_midway(server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [make(tmp_path / f"{n}.jpg") for n in range(4)]
    plain = server.mask_of

    def stop_after_one(data: bytes) -> "np.typing.NDArray[np.uint8]":
        if len(server.received) == 2:
            server.vanish()
        return plain(data)

    server.mask_of = stop_after_one
    assert run(server, tmp_path / "out", *images, "--no-overlay", "--concurrency", 1, "--timeout", 2) == 2
    assert names(tmp_path / "out") == ["0.png"]
    assert "2 not sent (the server is gone: stopped)" in capsys.readouterr().err


def test_a_busy_server_is_one_failure(server: FakeTriton, tmp_path: Path) -> None:
    plain, first = server.mask_of, make(tmp_path / "a.jpg")

    def busy_for_a(data: bytes) -> "np.typing.NDArray[np.uint8]":
        if data == first.read_bytes():
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        return plain(data)

    server.mask_of = busy_for_a
    assert (
        run(
            server,
            tmp_path / "out",
            first,
            make(tmp_path / "b.jpg", (12, 9)),
            "--concurrency",
            1,
            "--timeout",
            2,
            "--no-overlay",
        )
        == 1
    )
    assert names(tmp_path / "out") == ["b.png"]


def test_interrupted(server: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slime_client.batch._finished", interrupt)
    assert run(server, tmp_path / "out", make(tmp_path / "a.jpg")) == 130


def test_the_running_line_on_a_terminal(
    server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert run(server, tmp_path / "out", make(tmp_path / "a.jpg"), make(tmp_path / "b.jpg")) == 0
    assert "1/2" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["tif", "bmp", "gif", "avif", "heic"])
def test_formats_that_the_server_does_not_take_go_as_png(server: FakeTriton, tmp_path: Path, suffix: str) -> None:
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Image.init()
    if f".{suffix}" not in Image.EXTENSION:
        pytest.skip(f"this Pillow has no {suffix}")
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(np.full((6, 8, 3), 200, np.uint8)).save(path)
    assert run(server, tmp_path / "out", tmp_path) == 0
    assert names(tmp_path / "out") == ["photo-overlay.jpg", "photo.png"]
    with Image.open(io.BytesIO(server.received[-1])) as sent:
        assert sent.format == "PNG" and sent.size == (8, 6)
        assert np.abs(np.asarray(sent.convert("RGB")).astype(int) - 200).max() < 4


def test_16_bits_and_pages_of_tiff(server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = Image.fromarray(np.full((6, 8), 40000, np.uint16))
    wide.save(tmp_path / "a.tif", save_all=True, append_images=[wide])
    assert run(server, tmp_path / "out", tmp_path / "a.tif") == 0
    with Image.open(io.BytesIO(server.received[-1])) as sent:
        assert sent.format == "PNG" and (np.asarray(sent) == 40000).all()
    assert "a.tif: has 2 frames, of which the first is segmented" in capsys.readouterr().err
    Image.fromarray(np.ones((6, 8), np.float32)).save(tmp_path / "f.tif")
    assert run(server, tmp_path / "out", tmp_path / "f.tif") == 1
    assert "f.tif: got mode F, expected RGB or grey" in capsys.readouterr().err


def test_heic_without_its_package_says_which(
    server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(server, tmp_path / "out", tmp_path / "a.heic") == 1
    assert "pip install 'slime-serve[heic]'" in capsys.readouterr().err


def test_a_folder_tells_what_is_left_out(
    server: FakeTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    for name in ("a.jpg", "a-overlay.jpg", "b-overlay.jpg"):
        make(photos / name)
    for name in ("notes.txt", "more.txt", "deep/c.jpg", ".hidden"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).touch()
    assert run(server, tmp_path / "out", photos, "--no-overlay") == 0
    assert names(tmp_path / "out") == ["a.png", "b-overlay.png"]
    assert f"note: {photos}: 1 overlays of other images, 1 folders, 2 .txt left out" in capsys.readouterr().err
