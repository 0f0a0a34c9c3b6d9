"""Publishing segmenters whose networks are a few bytes, and a server that is only told of: for tests of publishing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import Snapshot
from tritonclient.grpc import model_config_pb2

from slime_export.errors import ServerError
from slime_export.publish import changes
from slime_export.publish.lock import staging
from slime_export.publish.publication import Candidate, Published, publish
from slime_export.publish.server_control import Server
from slime_optimize.segmenter import Segmenter
from slime_optimize.settings import Settings
from slime_repository import config as triton_config
from slime_repository import layout, manifest, shared_store, synced
from slime_repository.manifest import verify
from slime_repository.record import Check
from slime_repository.variant import Variant

BACKBONE = "a1" * 32
CHECK = Check(image=b"an image", mask_HW=np.zeros((8, 8), np.uint8), agreement=0.999, training_image=True)


def segmenter(parts: int = 3, backbone: str = BACKBONE) -> Segmenter:
    return Segmenter(
        text_embedding=torch.zeros(1, 77, 8),
        noise=torch.zeros(1, 4, 8, 8),
        parts=tuple(f"part {i}" for i in range(parts)),
        colours=((0, 0, 0),) * parts,
        backbone_id="tiny",
        backbone_hash=backbone,
        image_size=32,
        latent_size=8,
        settings=Settings(),
        preset="paper",
        seed=0,
    )


def run(
    repository: Path,
    name: str = "car",
    parts: int = 3,
    server: Any = None,
    unet: str = "",
    keep: int = 2,
    shared: bool = False,
) -> Published:
    """As the pipeline does it, with files of a few bytes in place of networks."""
    with staging(repository) as staged:
        encoder = layout.encoder_of(repository, BACKBONE)
        folders = {}
        for each in ("unet", "encoder"):
            folders[each] = staged / ".export" / each
            folders[each].mkdir(parents=True)
            (folders[each] / "model.onnx").write_text(f"{each} of {name}")
        if unet:
            (folders["unet"] / "model.onnx").write_text(unet)
        candidate = Candidate(
            name=name,
            segmenter=segmenter(parts),
            unet=folders["unet"],
            encoder=None if encoder else folders["encoder"],
            check=CHECK,
            shared=shared,
            variant=Variant(maps="weighted" if shared else "averaged"),
        )
        return publish(repository, staged, candidate, server, keep=keep)


def assert_servable(repository: Path) -> None:
    """Every model has its configuration, and every ensemble what it names, within the versions that are loaded."""
    for model in repository.iterdir():
        if model.name in (manifest.FILE, synced.FILE):
            continue
        assert not model.name.startswith(".")
        assert f'name: "{model.name}"' in layout.config_text(model)
    for name in layout.segmenters(repository):
        for model_name, version in layout.pinned(repository / name).items():
            loaded = triton_config.parsed(
                layout.config_text(repository / model_name)
            ).version_policy.latest.num_versions
            assert loaded >= 2
            assert version in layout.versions(repository / model_name)[-loaded:], (name, model_name)
        assert_own_version(repository / name)
    assert not list(repository.rglob("__pycache__"))
    assert verify(repository) or {each.name for each in repository.iterdir()} <= {synced.FILE}


def assert_own_version(ensemble: Path) -> None:
    from google.protobuf import text_format

    config = text_format.Parse(layout.config_text(ensemble), model_config_pb2.ModelConfig())
    assert config.version_policy.latest.num_versions == 2
    assert layout.versions(ensemble)


def killed(step: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of a child that does `action` and dies, with nothing cleaned up, before its step-th rename."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    real, left = changes.rename, [step]

    def dying(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        real(source, target)

    try:
        changes.rename = dying
        action()
    except BaseException:
        os._exit(1)
    os._exit(0)


def assert_all_or_nothing(
    repository: Path,
    snapshot: Callable[[Path], Snapshot],
    monkeypatch: pytest.MonkeyPatch,
    action: Callable[[], object],
    least_steps: int = 5,
) -> None:
    """Do `action` with a full disk at its 1st, 2nd, … rename: nothing changes, until it succeeds."""
    before, real, step = snapshot(repository), changes.rename, 0
    while True:
        left = [step := step + 1]

        def failing(source: Path, target: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            real(source, target)

        monkeypatch.setattr(changes, "rename", failing)
        try:
            action()
        except OSError:
            assert snapshot(repository) == before, step
        else:
            break
    assert step >= least_steps


def assert_taken_back(
    server: FakeServer, snapshot: Callable[[Path], Snapshot], fails_at: str, action: Callable[[], object]
) -> dict[str, tuple[list[int], str]]:
    """Do `action` while the server fails at one call: the repository is as before. Return what was loaded before."""
    before, loaded = snapshot(server.repository), dict(server.loaded)
    server.fails_at = fails_at
    with pytest.raises(ServerError, match=fails_at):
        action()
    assert snapshot(server.repository) == before
    return loaded


class FakeServer(Server):
    """Takes everything, or fails at one call; remembers what was asked."""

    def __init__(self, repository: Path, fails_at: str = "") -> None:
        self.url, self.calls, self.fails_at, self.repository = "fake", [], fails_at, repository
        self.loaded: dict[str, tuple[list[int], str]] = {}
        self.calls: list[str] = []

    def load(self, model: str) -> None:
        self._note(f"load {model}")
        folder = self.repository / model
        self.loaded[model] = (layout.versions(folder)[-2:], layout.config_text(folder))

    def unload(self, model: str) -> None:
        self._note(f"unload {model}")
        self.loaded.pop(model, None)

    def has(self, model: str, version: int) -> bool:
        return model in self.loaded and version in self.loaded[model][0]

    def states(self) -> dict[str, dict[int, str]]:
        return {model: dict.fromkeys(versions, "READY") for model, (versions, _) in self.loaded.items()}

    def unload_trials(self) -> None:
        pass

    def try_out(self, name: str, config: str, check: Check, segmenter: str | None = None) -> float:
        assert layout.config_text(self.repository / name) != config
        for model, version in layout.pins(config).items():
            assert self.has(model, version)
        assert check.image == CHECK.image and np.array_equal(check.mask_HW, CHECK.mask_HW)
        self._note(f"try {name} on unet {layout.pins(config)[name + '_unet']}")
        return 0.25

    def try_shared(self, group: str, name: str, check: Check) -> float:
        assert group in self.loaded and shared_store.entry(self.repository, name)
        assert check.image == CHECK.image
        self._note(f"try {name}")
        return 0.25

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails_at:
            self.fails_at = ""
            raise ServerError(f"server fake: {call} failed")


def published_twice(repository: Path) -> FakeServer:
    """Publish versions 1 and 2 of car on a server that takes everything, and return the server."""
    server = FakeServer(repository)
    for _ in range(2):
        run(repository, server=server)
    return server
