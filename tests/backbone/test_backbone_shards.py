"""A state packed into shards comes back, and keeps the limits of the transfer."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from slime_backbone import shards
from slime_backbone.autoencoder import known_scale
from slime_backbone.shards import ShardError, pack, unpack
from slime_backbone.training import read_state


@pytest.fixture(scope="module")
def packed(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing may write to it."""
    return pack(state, tmp_path_factory.mktemp("packed")).parent


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    """Links, so that replacing a file leaves the original."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for path in packed.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def test_shards_keep_the_limits(packed: Path) -> None:
    files = list(packed.iterdir())
    assert len(files) <= 8
    assert max(p.stat().st_size for p in files) <= 16 * 2**20
    assert sum(p.stat().st_size for p in files) <= 64 * 2**20
    assert all(set(p.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for p in files)


def test_what_was_packed_comes_back(state: Path, packed: Path, tmp_path: Path) -> None:
    assert unpack(packed, tmp_path / "new") == 7
    before, after = (read_state(folder / "diffusion.pt") for folder in (state, tmp_path / "new"))
    for part in ("modules", "average"):
        assert before[part].keys() == after[part].keys()
        assert all(torch.equal(before[part][key], after[part][key]) for key in before[part])
    assert (after["step"], after["history"]) == (before["step"], before["history"])
    assert "optimiser" not in after
    assert known_scale(tmp_path / "new") == 0.5
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "new" / "tokenizer" / name).read_text() == (state / "tokenizer" / name).read_text()
    vae = read_state(tmp_path / "new" / "vae.pt")["average"]
    for key, value in read_state(state / "vae.pt")["average"].items():
        torch.testing.assert_close(vae[key], value.half().float(), rtol=0, atol=0)


def test_a_training_is_never_replaced(state: Path, packed: Path) -> None:
    before = (state / "diffusion.pt").stat().st_mtime_ns
    with pytest.raises(ShardError, match=r"already holds diffusion\.pt"):
        unpack(packed, state)
    assert (state / "diffusion.pt").stat().st_mtime_ns == before


def test_corrupt_shard_is_one_clear_line(copied: Path, tmp_path: Path) -> None:
    shard = copied / "state-7-1.bin"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.unlink()
    shard.write_bytes(data)
    with pytest.raises(ShardError, match=r"state-7-1\.bin: sha256 .*, expected .*; fetch it again") as failed:
        unpack(copied, tmp_path / "new")
    assert "\n" not in str(failed.value)
    assert not (tmp_path / "new").exists()


def test_missing_pieces_are_named(copied: Path, tmp_path: Path) -> None:
    (copied / "state-7-0.bin").unlink()
    with pytest.raises(ShardError, match=r"state-7-0\.bin: cannot be read"):
        unpack(copied, tmp_path / "new")
    (copied / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"has no manifest\.json"):
        unpack(copied, tmp_path / "new")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 99, "shards": []}'])
def test_foreign_manifest_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match="again"):
        unpack(tmp_path, tmp_path / "new")


def test_too_large_a_state_is_refused(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "TOTAL_BYTES", 1000)
    with pytest.raises(ShardError, match="expected at most 1000"):
        pack(state, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_packing_again_leaves_no_old_shard(state: Path, tmp_path: Path) -> None:
    (tmp_path / "state-3-0.bin").write_bytes(b"of an earlier packing")
    pack(state, tmp_path)
    named = {shard["name"] for shard in json.loads((tmp_path / "manifest.json").read_text())["shards"]}
    assert {p.name for p in tmp_path.iterdir()} == named | {"manifest.json"}


def test_script_makes_weights_from_shards(packed: Path, tmp_path: Path, train_script: ModuleType) -> None:
    arguments = ["--no-train", "--state", str(tmp_path / "state"), "--out", str(tmp_path / "weights")]
    assert train_script.main([*arguments, "--unpack", str(packed)]) == 0
    assert (tmp_path / "weights" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size < 20e6


def test_script_tells_mistakes_in_one_line(
    packed: Path, state: Path, tmp_path: Path, train_script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--no-train", "--out", str(tmp_path / "weights")]
    assert train_script.main([*out, "--state", str(state), "--unpack", str(packed)]) == 2
    assert train_script.main([*out, "--state", str(tmp_path / "none")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: state ") for line in lines)
    assert not (tmp_path / "weights").exists()
