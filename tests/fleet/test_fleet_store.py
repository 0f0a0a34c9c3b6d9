"""What `slime fleet` keeps in an object store: checkpoints and segmenters, masks and rows. No Ray runs here."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_triton import FakeTriton
from PIL import Image
from s3_server import ENVIRONMENT, S3Server

import backbones
from painting import PARTS, paint
from slime_client import SegmenterError
from slime_fleet import segmenting
from slime_fleet.command import FILES
from slime_fleet.folder import Folder
from slime_fleet.jobs import Job
from slime_fleet.learning import DONE_FILE, StoredCheckpoint, learn
from slime_optimize import Segmenter
from slime_optimize.commands import run


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    running = S3Server()
    yield running
    running.close()


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a bucket that has nothing in it."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    made = Folder(f"s3://b{uuid.uuid4().hex}")
    made.fs.mkdir(made.root)
    return made.url


def test_learning_goes_on_from_a_checkpoint_in_a_store(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask = paint()
    inputs = Folder(f"{bucket}/inputs")
    for name, pixels in (("image", image), ("mask", mask)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        inputs.write(f"{name}.png", (tmp_path / f"{name}.png").read_bytes())
    backbones.build(tmp_path / "backbone")
    words = ("--parts", *PARTS, "--backbone", str(tmp_path / "backbone"), "--steps", "5", "--precision", "fp32")
    words += ("--threshold", "0", "--checkpoint-every", "0", "--no-report", "--device", "cpu")
    here = ("--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png"))
    there = ("--image", f"{inputs.url}/image.png", "--mask", f"{inputs.url}/mask.png")
    job, out = Job(name="a", words=(*there, *words)), Folder(f"{bucket}/out")
    saved = StoredCheckpoint.save

    def lost_after_three_steps(self: StoredCheckpoint, state: Any, identity: Any) -> None:
        saved(self, state, identity)
        if state.step == 3:
            raise OSError("the node is gone")

    with monkeypatch.context() as broken:
        broken.setattr(StoredCheckpoint, "save", lost_after_three_steps)
        with pytest.raises(OSError, match="the node is gone"):
            learn(job, out.url, 1)
    assert [name.partition("-")[0] for name in out.files()] == ["a/checkpoint"]
    line = learn(job, out.url, 1)
    assert line["went_on"] and line["state"] == "learned" and learn(job, out.url, 1)["state"] == "there"
    names = set(out.files())
    assert {"a/segmenter.safetensors", "a/segmenter.json", f"a/{DONE_FILE}", "a/training.png"} <= names
    assert not [name for name in names if "checkpoint" in name]
    assert run.main([*here, *words, "--quiet", "--out", str(tmp_path / "alone")]) == 0
    out.fetch(tmp_path / "fetched")
    one, other = Segmenter.load(tmp_path / "fetched" / "a"), Segmenter.load(tmp_path / "alone")
    assert torch.equal(one.text_embedding, other.text_embedding)
    with pytest.raises(FileNotFoundError, match=f"{inputs.url}/none.png: is not there"):
        learn(Job(name="b", words=("--image", f"{inputs.url}/none.png", *there[2:], *words)), out.url, 1)


def test_masks_and_rows_in_a_store(bucket: str, tmp_path: Path) -> None:
    images, out = Folder(f"{bucket}/images"), Folder(f"{bucket}/out")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg")
    images.write("more/a.jpg", (tmp_path / "a.jpg").read_bytes())
    images.write("bad.jpg", b"no picture")
    server = FakeTriton()
    server.start()
    source = segmenting.Source(name="car", url=server.url)
    with source.opened() as segmenter:
        whose = segmenting.identity(segmenter)
    worker = segmenting.Worker(source, images.url, out.url, FILES, whose)
    listed = images.files()
    told = [{"path": name, "size": file.size, "changed": file.changed} for name, file in listed.items()]
    rows = worker(pa.Table.from_pylist([*told, {"path": "gone.jpg", "size": 1, "changed": "x"}]))
    how: dict[str, Any] = {"keep": FILES, "cpus": 1, "workers": None, "rows_per_file": 1}
    out.write_json(segmenting.IDENTITY_FILE, {**whose, "hash": "another"})
    for place, said in ((out.url, "has masks of segmenter car"), (f"{images.url}/masks", "lies in the folder of")):
        with pytest.raises(SegmenterError, match=said):
            segmenting.segment(source, images.url, place, **how)
    with pytest.raises(SegmenterError, match="has no image"):
        segmenting.segment(source, f"{bucket}/nothing", out.url, **how)
    server.stop()
    bad, good, gone = rows.to_pylist()
    assert bad["error"].startswith("bad.jpg: ") and gone["error"].startswith("gone.jpg: ") and good["error"] is None
    assert good["areas"] == {"background": 24, "body": 24, "wheel": 0} and (good["width"], good["height"]) == (8, 6)
    with out.fs.open(out.path(str(good["mask"]))) as file, Image.open(file) as mask:
        assert np.bincount(np.asarray(mask).ravel()).tolist() == [24, 24]
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer)
    out.write("results/1.parquet", buffer.getvalue().to_pybytes())
    out.write("results/2.parquet", b"PAR1")
    assert segmenting._rows(out, listed) == [("bad.jpg", bad["error"]), ("more/a.jpg", None)]
    # Errors are to be made anew, so that nothing has two rows; a file that a kill has cut short is gone.
    assert segmenting._rows(out, listed, mend=False) == [("more/a.jpg", None)]
    images.write("more/a.jpg", b"another picture")
    assert segmenting._rows(out, images.files()) == []
