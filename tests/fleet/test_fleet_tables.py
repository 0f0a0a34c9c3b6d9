"""Tables of segmenters to learn, and mistakes in what `slime fleet` is given; nothing here starts Ray."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from slime_fleet import jobs
from slime_fleet.command import main
from slime_fleet.folder import Folder
from slime_optimize.errors import InputError


def table(folder: Path, content: str, name: str = "jobs.csv") -> Path:
    (folder / name).write_text(content)
    return folder / name


def test_both_kinds_of_table_say_the_same(tmp_path: Path) -> None:
    for name in ("a b.png", "mask.png"):
        (tmp_path / name).write_text("")
    cells = "name,image,mask,parts,steps,no_report,flip_average\n\n"
    cells += "car,'a b.png',mask.png,background 'car body',7,true,false\n"
    row = {"name": "car", "image": "a b.png", "mask": ["mask.png"], "parts": ["background", "car body"], "steps": 7}
    lines = json.dumps({**row, "no-report": True, "flip-average": False})
    (one,) = jobs.read(table(tmp_path, cells), ["--backbone", "embedded"])
    (other,) = jobs.read(table(tmp_path, lines, "jobs.jsonl"), ["--backbone", "embedded"])
    assert one == other and not one.error
    assert one.words[:4] == ("--backbone", "embedded", "--image", str(tmp_path / "a b.png"))
    assert one.words[6:] == ("--parts", "background", "car body", "--steps", "7", "--no-report", "--no-flip-average")


def test_a_job_is_another_once_a_file_of_it_is(tmp_path: Path) -> None:
    for name in ("image.png", "mask.png"):
        (tmp_path / name).write_text("one")
    (job,) = jobs.read(table(tmp_path, "name,image,mask,parts\ncar,image.png,mask.png,background body\n"))
    before = job.made_from()
    assert job.made_from() == before
    (tmp_path / "mask.png").write_text("two")
    os.utime(tmp_path / "mask.png", (1, 1))
    assert job.made_from() != before


def test_a_line_that_cannot_be_learned_is_no_trouble_for_the_others(tmp_path: Path) -> None:
    found = jobs.read(table(tmp_path, "name,data,steps\na,x,3\nb,x,three\nc,x,\n"))
    assert [bool(job.error) for job in found] == [False, True, False]
    assert "argument --steps: invalid int value: 'three'" in found[1].error


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name,data\na,x\nA,y\n", "the name 'a' is there twice"),
        ("data\nx\n", "line 2: got the name ''"),
        ("name,data\n../a,x\n", "line 2: got the name '../a'"),
        ("name,data\na,x,y\n", "line 2 has another number of cells"),
        ("name,data\n", "has no line"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    path = table(tmp_path, content) if content is not None else tmp_path / "none.csv"
    with pytest.raises(InputError):
        jobs.read(path)
    assert main(["optimize", str(path), "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: jobs {path}") and said in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path, "name,data\na,x\n")
    assert main(["optimize", str(path), "--out", str(tmp_path), "--address", "nonsense"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --address nonsense: no Ray cluster is there")


def test_a_share_is_a_share(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ("-1", "1.5", "half"):
        with pytest.raises(SystemExit, match="2"):
            main(["optimize", "jobs.csv", "--out", "out", "--gpus", given])
        assert f"got {given}, expected a share such as 0.25" in capsys.readouterr().err


def test_a_folder_reads_what_it_wrote(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "new"))
    assert folder.read("a/b") is None and folder.read_json("a") == {} and folder.files() == {}
    folder.write("a/b", b"content")
    folder.write("c", b'{"cut": ')
    assert folder.read_json("c") == {}
    assert [(name, file.size) for name, file in folder.files().items()] == [("a/b", 7), ("c", 8)]
    folder.fetch(tmp_path / "copy")
    assert (tmp_path / "copy" / "a" / "b").read_bytes() == b"content"
    folder.remove("c")
    folder.remove("c")
    assert list(folder.files()) == ["a/b"]
