"""Every form a mask can be kept in, read back with the tools that people read it with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fake_triton import FakeTriton
from PIL import Image, ImageDraw

from slime_client import Mask
from slime_client.cli import main
from slime_client.formats import FORMATS, merged_coco

PARTS = ("background", "body", "wheel", "window")
COLOURS = ((0, 0, 0), (200, 30, 30), (30, 30, 200), (9, 9, 9))
# What pycocotools 2.0.11 says, as it decodes, with numpy 2.
PYCOCOTOOLS = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.fixture
def mask() -> Mask:
    """Blobs with holes, islands, single pixels, parts that touch the edge; no window."""
    rng = np.random.default_rng(3)
    rough = Image.fromarray(rng.integers(0, 256, (9, 12), dtype=np.uint8)).resize((60, 45), Image.Resampling.BICUBIC)
    array = np.digitize(np.asarray(rough), [110, 150]).astype(np.uint8)
    array[20:26, 20:26] = 1
    array[22:24, 22:24] = 0
    array[0, 0] = 2
    assert sorted(np.unique(array)) == [0, 1, 2]
    return Mask(array=array, parts=PARTS, colours=COLOURS)


def read(name: str, mask: Mask) -> bytes:
    content = FORMATS[name].encode(mask, "photo.jpg")
    assert FORMATS[name].whole(content)
    return content


def test_palette_and_index_png(mask: Mask) -> None:
    for name, mode in (("palette", "P"), ("index", "L")):
        with Image.open(io.BytesIO(read(name, mask))) as picture:
            assert picture.mode == mode
            np.testing.assert_array_equal(np.asarray(picture), mask.array)


def test_npz(mask: Mask) -> None:
    with np.load(io.BytesIO(read("npz", mask))) as arrays:
        np.testing.assert_array_equal(arrays["mask"], mask.array)
        assert arrays["mask"].dtype == np.uint8
        assert tuple(arrays["parts"]) == PARTS
        np.testing.assert_array_equal(arrays["colours"], COLOURS)


@PYCOCOTOOLS
def test_coco(mask: Mask) -> None:
    lengths = pytest.importorskip("pycocotools.mask")
    one = json.loads(read("coco", mask))
    assert one["images"] == [{"id": 1, "file_name": "photo.jpg", "width": 60, "height": 45}]
    assert [category["name"] for category in one["categories"]] == ["body", "wheel", "window"]
    assert [annotation["category_id"] for annotation in one["annotations"]] == [1, 2]
    for annotation in one["annotations"]:
        inside = mask.array == annotation["category_id"]
        np.testing.assert_array_equal(lengths.decode(annotation["segmentation"]), inside)
        assert annotation["area"] == inside.sum()
        rows, columns = np.nonzero(inside)
        left, top, width, height = annotation["bbox"]
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


@PYCOCOTOOLS
def test_coco_files_of_several_images_become_one(mask: Mask, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO

    other = Mask(array=mask.array.T.copy(), parts=("ground", "wheel", "roof"), colours=COLOURS[:3])
    files = [FORMATS["coco"].encode(mask, "a.jpg"), FORMATS["coco"].encode(other, "b.jpg")]
    (tmp_path / "coco.json").write_bytes(merged_coco(files))
    data = COCO(tmp_path / "coco.json")
    assert [category["name"] for category in data.loadCats(data.getCatIds())] == ["body", "wheel", "window", "roof"]
    assert sorted(data.anns) == [1, 2, 3, 4]
    for number, (name, one) in enumerate((("a.jpg", mask), ("b.jpg", other)), 1):
        assert data.imgs[number]["file_name"] == name
        for annotation in data.loadAnns(data.getAnnIds(imgIds=number)):
            part = data.cats[annotation["category_id"]]["name"]
            np.testing.assert_array_equal(data.annToMask(annotation), one.array == one.parts.index(part))


def rasterised(feature: dict[str, Any], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Whether each pixel's centre lies inside: Pillow draws at eight times the size, and the centres are looked at."""
    scale = 8
    picture = Image.new("1", (shape[1] * scale, shape[0] * scale))
    draw = ImageDraw.Draw(picture)
    assert feature["geometry"]["type"] == "MultiPolygon"
    for outer, *holes in feature["geometry"]["coordinates"]:
        for ring, value in ((outer, 1), *((hole, 0) for hole in holes)):
            assert ring[0] == ring[-1]
            draw.polygon([(x * scale, y * scale) for x, y in ring], fill=value)
    return np.asarray(picture)[scale // 2 :: scale, scale // 2 :: scale]


def area(ring: list[list[float]]) -> float:
    x, y = np.array(ring).T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def test_geojson(mask: Mask) -> None:
    pytest.importorskip("contourpy")
    whole = json.loads(read("geojson", mask))
    assert (whole["type"], whole["image"]) == ("FeatureCollection", "photo.jpg")
    assert [feature["properties"]["part"] for feature in whole["features"]] == ["body", "wheel"]
    for feature in whole["features"]:
        inside = mask.array == feature["properties"]["index"]
        assert feature["properties"]["pixels"] == inside.sum()
        np.testing.assert_array_equal(rasterised(feature, inside.shape), inside)
        rings = feature["geometry"]["coordinates"]
        # Outer rings run one way, holes the other, as RFC 7946 has it.
        assert all(area(outer) > 0 and all(area(hole) < 0 for hole in holes) for outer, *holes in rings)
        covered = sum(area(ring) for polygon in rings for ring in polygon)
        assert covered == pytest.approx(inside.sum(), rel=0.1)
    assert any(holes for feature in whole["features"] for _, *holes in feature["geometry"]["coordinates"])


@pytest.mark.parametrize("name", list(FORMATS))
def test_what_was_cut_off_is_not_whole(name: str, mask: Mask, tmp_path: Path) -> None:
    if FORMATS[name].needs:
        pytest.importorskip(FORMATS[name].needs)
    path = tmp_path / "result"
    assert not FORMATS[name].is_whole(path)
    content = FORMATS[name].encode(
        Mask(array=mask.array, parts=PARTS, colours=COLOURS, source=_photo(mask)), "photo.jpg"
    )
    path.write_bytes(content)
    assert FORMATS[name].is_whole(path)
    path.write_bytes(content[:-20])
    assert not FORMATS[name].is_whole(path)


def _photo(mask: Mask) -> Any:
    from slime_client.images import encode

    return encode(np.zeros((*mask.array.shape, 3), np.uint8))


def test_all_at_once_from_the_command_line(server: FakeTriton, tmp_path: Path, photo: Path) -> None:
    pytest.importorskip("pycocotools")
    pytest.importorskip("contourpy")
    formats = [word for name in ("palette", "index", "npz", "coco", "geojson") for word in ("--format", name)]
    words = ["--url", server.url, "--segmenter", "car", "--out", str(tmp_path / "out"), *formats, str(photo)]
    assert main(words) == 0
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("[!.]*"))
    assert found == [
        "coco", "coco.json", "coco/photo.json", "photo-index.png", "photo-overlay.jpg", "photo.geojson", "photo.npz",
        "photo.png",
    ]  # fmt: skip


def test_a_package_that_is_missing_is_said_at_once(
    server: FakeTriton, tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["--url", server.url, "--segmenter", "car", "--out", str(tmp_path / "out"), "--format", "coco", str(photo)]
    assert main(words) == 2
    assert "pycocotools is missing; pip install" in capsys.readouterr().err
    assert not server.received
