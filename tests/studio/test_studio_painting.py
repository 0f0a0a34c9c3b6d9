"""What is painted is kept, exactly, whatever happens to the studio; and what can be sent is bounded."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from studios import encoded, noise

from slime_image.decoding import MAX_SIDE
from slime_studio.errors import StudioError
from slime_studio.project import Project
from slime_studio.studio import Studio
from slime_was.options import MAX_PARTS


@pytest.fixture
def image(client: TestClient) -> str:
    """An image of 40 x 30 with the parts 1 and 2."""
    for name in ("body", "wheel"):
        assert client.post("/api/parts", json={"name": name}).status_code == 200
    made: str = client.post("/api/images?name=My car.png", content=encoded(noise(30, 40))).json()["id"]
    return made


def test_edits_are_on_disk_to_the_pixel(client: TestClient, studio: Studio, image: str) -> None:
    assert image == "my-car"
    edit = np.full((3, 4), 254, np.uint8)
    edit[1, 2] = 2
    client.post(f"/api/images/{image}/patch?x=5&y=6&w=2&h=2", content=bytes([1, 1, 1, 1]))
    answer = client.post(f"/api/images/{image}/patch?x=4&y=5&w=4&h=3", content=edit.tobytes())
    wanted = np.zeros((30, 40), np.uint8)
    wanted[6:8, 5:7] = 1
    wanted[6, 6] = 2
    on_disk = Image.open(studio.project.mask_path(image))
    assert on_disk.mode == "P" and np.array_equal(np.array(on_disk), wanted)
    assert on_disk.getpalette()[3:6] == list(bytes.fromhex(studio.project.colours[1][1:]))
    sent = client.get(f"/api/images/{image}/mask")
    assert sent.headers["x-revision"] == answer.json()["revision"]
    assert np.array_equal(np.frombuffer(sent.content, np.uint8).reshape(30, 40), wanted)


def test_another_studio_finds_what_was_painted(client: TestClient, studio: Studio, image: str) -> None:
    client.post(f"/api/images/{image}/patch?x=0&y=0&w=1&h=1", content=b"\1")
    client.post(f"/api/images/{image}", json={"example": True})
    with pytest.raises(StudioError, match="is open in another studio"):
        Project(studio.project.folder)
    studio.project.close()
    again = Project(studio.project.folder)
    assert [part.name for part in again.parts] == ["background", "body", "wheel"]
    assert again.mask(image)[0, 0] == 1 and again.image(image)["example"]
    again.close()


def test_an_edit_that_comes_late_or_twice_changes_nothing(client: TestClient, studio: Studio, image: str) -> None:
    """A tab that is closed sends all that is not saved as one edit, which may overtake the one before."""
    for number, value in ((2, b"\2"), (1, b"\1"), (2, b"\1")):
        answer = client.post(
            f"/api/images/{image}/patch?x=0&y=0&w=1&h=1&number={number}", content=value, headers={"X-Tab": "a"}
        )
        assert answer.status_code == 200
    assert studio.project.mask(image)[0, 0] == 2
    client.post(f"/api/images/{image}/patch?x=0&y=0&w=1&h=1&number=1", content=b"\1", headers={"X-Tab": "b"})
    assert studio.project.mask(image)[0, 0] == 1


def test_a_full_disk_is_told_and_leaves_the_mask_whole(
    client: TestClient, studio: Studio, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/api/images/{image}/patch?x=0&y=0&w=1&h=1"
    client.post(path, content=b"\1")

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        refused = client.post(path, content=b"\2")
        assert refused.status_code == 507 and "the disk is full; free some of it" in refused.json()["error"]
        assert client.post("/api/parts", json={"name": "door"}).status_code == 507
        assert client.post("/api/images?name=b.png", content=encoded(noise(4, 4, 1))).status_code == 507
    assert studio.project.mask(image)[0, 0] == 1
    assert [part.name for part in studio.project.parts] == ["background", "body", "wheel"]
    assert [each["id"] for each in studio.project.images()] == [image]
    assert client.post(path, content=b"\2").status_code == 200 and studio.project.mask(image)[0, 0] == 2


def test_a_rectangle_that_is_not_on_the_image_is_refused(client: TestClient, image: str) -> None:
    for place in ("x=39&y=0&w=2&h=1", "x=-1&y=0&w=2&h=1", "x=0&y=29&w=1&h=2", "x=0&y=0&w=3&h=1", "x=0&y=0&w=0&h=0"):
        refused = client.post(f"/api/images/{image}/patch?{place}", content=b"\1\1")
        assert refused.status_code == 400 and "expected a rectangle on the image of 40x30" in refused.json()["error"]
    assert client.post(f"/api/images/{image}/patch?x=0&y=0&w=1&h=1", content=b"\x09").status_code == 409


def test_77_parts_and_not_78(client: TestClient, studio: Studio) -> None:
    for number in range(1, MAX_PARTS):
        assert client.post("/api/parts", json={"name": f"part {number}"}).status_code == 200
    assert len(studio.project.parts) == 77
    refused = client.post("/api/parts", json={"name": "one more"})
    assert refused.status_code == 400 and "got 78 names, expected 2 to 77" in refused.json()["error"]
    assert len(studio.project.parts) == 77 and len({part.colour for part in studio.project.parts}) == 77


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"name": "body"}, "'body' is named twice"),
        ({"name": "  "}, "is empty"),
        ({"name": "bg"}, "another name of 'background'"),
        ({"name": "x" * 61}, "61 characters, expected 60"),
        ({"name": 3}, "got int, expected text"),
    ],
)
def test_names_that_cannot_be_learned_are_refused(
    facts: dict[str, object], told: str, client: TestClient, image: str
) -> None:
    refused = client.post("/api/parts", json=facts)
    assert refused.status_code == 400 and told in refused.json()["error"]


def test_what_is_painted_of_a_removed_part_is_background(client: TestClient, studio: Studio, image: str) -> None:
    client.post(f"/api/images/{image}/patch?x=0&y=0&w=3&h=1", content=b"\1\2\xff")
    assert client.post("/api/parts/1", json={"colour": "#ff0000", "name": "shell"}).status_code == 200
    assert studio.project.parts[1].name == "shell" and studio.project.parts[1].colour == "#ff0000"
    assert client.post("/api/parts/1/remove").status_code == 200
    assert studio.project.numbers(studio.project.mask(image))[0, :3].tolist() == [0, 1, 255]
    assert client.post("/api/parts", json={"name": "door"}).json()["value"] == 3  # no value is used again
    assert client.post("/api/parts/0/remove").status_code == 404


def test_a_part_that_is_never_painted_is_told_before_learning(client: TestClient, image: str) -> None:
    refused = client.post("/api/learn", json={})
    assert refused.status_code == 400 and "no image is painted and marked" in refused.json()["error"]
    client.post(f"/api/images/{image}/patch?x=0&y=0&w=1&h=1", content=b"\1")
    client.post(f"/api/images/{image}", json={"example": True})
    refused = client.post("/api/learn", json={})
    assert refused.status_code == 400 and refused.json()["error"].startswith("learn: wheel is painted in no image")
    assert client.get("/api/state").json()["jobs"] == []


def turned() -> bytes:
    """A JPEG of 20 x 10 that its EXIF tag turns upright, to 10 x 20."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(10, 20), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (turned(), (10, 20)),
        (encoded(noise(1, MAX_SIDE)), (MAX_SIDE, 1)),
        (encoded(noise(8, 6), "TIFF"), (6, 8)),
        (encoded(noise(8, 6)[..., 0], "BMP"), (6, 8)),
    ],
)
def test_images_are_kept_upright_in_a_form_that_browsers_show(
    data: bytes, size: tuple[int, int], client: TestClient, studio: Studio
) -> None:
    made = client.post("/api/images?name=a", content=data).json()["id"]
    facts = studio.project.image(made)
    assert (facts["width"], facts["height"]) == size
    with Image.open(io.BytesIO(client.get(f"/api/images/{made}").content)) as kept:
        assert kept.size == size and kept.format in ("PNG", "JPEG") and kept.getexif().get(0x0112, 1) == 1
    assert client.get(f"/api/images/{made}/small").headers["content-type"] == "image/jpeg"
    assert client.post("/api/images?name=again", content=data).json()["id"] == made


def huge() -> bytes:
    """A small PNG of 100 megapixels."""
    stream = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (huge(), "100.0 megapixels, expected at most 50"),
        (encoded(noise(1, MAX_SIDE + 1)), "16385 x 1"),
        (encoded(noise(30, 30))[:900], "broken or truncated"),
        (b"no image at all", "expected a readable JPEG"),
        (b"", "got 0 bytes"),
    ],
)
def test_what_is_no_image_or_too_large_is_told_in_one_line(data: bytes, told: str, client: TestClient) -> None:
    refused = client.post("/api/images?name=photo.png", content=data)
    assert refused.status_code == 400 and refused.json()["error"].startswith("photo.png: ")
    assert told in refused.json()["error"] and "\n" not in refused.json()["error"]
    assert client.get("/api/state").json()["images"] == []


def test_uploads_are_bounded_with_and_without_a_told_length(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_studio.app.MAX_BYTES", 1000)
    for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):
        assert client.post("/api/images?name=a.png", content=content).status_code == 413


def test_an_annotated_folder_is_opened(client: TestClient, studio: Studio, image: str) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[:9], mask[12:] = 1, 2
    files = {"images/a.png": encoded(noise(20, 30, 5)), "masks/a.png": encoded(mask)}
    files["parts.json"] = b'["background", "wheel", "door"]'
    for path, data in files.items():
        assert client.post(f"/api/opened/b1?path={path}", content=data).status_code == 200
    told = client.post("/api/opened/b1/read").json()
    assert told == {"images": 1, "kept": 0, "by_number": False, "parts": ["background", "wheel", "door"]}
    assert [part.name for part in studio.project.parts] == ["background", "body", "wheel", "door"]
    opened = next(each for each in studio.project.images() if each["id"] != image)
    assert opened["example"]
    values = studio.project.mask(opened["id"])
    assert set(np.unique(values[:9])) == {2} and set(np.unique(values[12:])) == {3}
    assert not (studio.project.folder / "opened" / "b1").exists()
    client.post("/api/opened/b2?path=a.txt", content=b"nothing")
    refused = client.post("/api/opened/b2/read")
    assert refused.status_code == 400 and str(studio.project.folder) not in refused.json()["error"]


def test_a_mask_file_is_opened_over_its_image(client: TestClient, image: str) -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[3, 4] = 2
    answer = client.post(f"/api/images/{image}/open-mask?name=m.png", content=encoded(mask))
    assert np.array_equal(np.frombuffer(answer.content, np.uint8).reshape(30, 40), mask)
    for other, told in ((mask[:9], "is 40x9, expected 40x30"), (mask * 20, "has the part ids 40")):
        refused = client.post(f"/api/images/{image}/open-mask?name=m.png", content=encoded(other))
        assert refused.status_code == 400 and told in refused.json()["error"]
