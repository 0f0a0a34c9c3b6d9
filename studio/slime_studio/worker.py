"""The process of a job: it runs the same commands as people type, and writes down how far it is.

    python -m slime_studio.worker JOB_FOLDER

Learning is `slime optimize` with the job's words, publishing `slime export`, rolling back `slime repository rollback`.
`look` segments the project's images and measures how clearly each pixel's part wins. `clip` has a server
segment a video.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slime_studio import files
from slime_studio.pictures import small

if TYPE_CHECKING:
    from slime_optimize import Segmenter
    from slime_optimize.method.training import Trainer

_WRITE_SECONDS = 0.4
_SHOWN = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # shares of a run after which a picture is made
_CURVE = 200  # points of a curve of losses
_PICTURE = 480


class Progress:
    """Writes progress.json while a segmenter is learned: steps, time left, losses, and pictures on the way."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pictures: list[dict[str, Any]] = files.read_json(folder / "progress.json").get("pictures", [])
        self._began, self._first, self._written, self._drawing = time.monotonic(), -1, 0.0, 0.0

    def watch(self, trainer: Trainer) -> None:
        """Take note of a step that has ended."""
        if self._first < 0:  # the first step is slower than the others
            self._first, self._began = trainer.finished, time.monotonic()
        steps = trainer.run.steps
        wanted = {max(1, round(share * steps)) for share in _SHOWN}
        if trainer.finished in wanted:
            began = time.monotonic()
            self._draw(trainer)
            self._drawing += time.monotonic() - began
        now, taken = time.monotonic(), trainer.finished - self._first
        if trainer.left and trainer.finished not in wanted and now - self._written < _WRITE_SECONDS:
            return
        a_step = (now - self._began - self._drawing) / taken if taken else None
        self._written = now
        files.write_json(
            self._folder / "progress.json",
            {
                "step": trainer.finished,
                "steps": steps,
                "seconds_left": None if a_step is None else round(a_step * trainer.left, 1),
                "losses": trainer.mean_losses(),
                "curve": _curve(trainer),
                "pictures": self._pictures,
            },
        )

    def _draw(self, trainer: Trainer) -> None:
        from slime_optimize import Predictor
        from slime_optimize.picture import overlay

        image_HW3 = trainer.run.examples[0].image_HW3
        segmenter = recoloured(trainer.segmenter(), self._folder)
        mask_HW = Predictor(segmenter, trainer.run.backbone).mask(image_HW3)
        name = f"step-{trainer.finished}.jpg"
        files.write(self._folder / name, small(overlay(image_HW3, mask_HW, segmenter.colours), _PICTURE))
        kept = [each for each in self._pictures if each["step"] < trainer.finished]
        self._pictures = [*kept, {"step": trainer.finished, "file": name}]


def _curve(trainer: Trainer) -> list[float]:
    """Return the total loss (eq. 8) over the run, smoothed to _CURVE points at most."""
    settings, rows_SL = trainer.run.settings, trainer.losses_SL.numpy()
    total_S = rows_SL @ np.array([1.0, settings.alpha, settings.beta])
    pieces = np.array_split(total_S, min(_CURVE, len(total_S)))
    return [round(float(piece.mean()), 4) for piece in pieces]


def recoloured(segmenter: Segmenter, folder: Path) -> Segmenter:
    """Return the segmenter with the colours that the job has for its parts."""
    colours = [bytes.fromhex(colour[1:]) for colour in files.read_json(folder / "job.json")["colours"]]
    return replace(segmenter, colours=tuple((red, green, blue) for red, green, blue in colours))


def learn(folder: Path, job: dict[str, Any]) -> int:
    """Run `slime optimize`; the segmenter gets the colours that the parts have on the page."""
    from slime_optimize import Segmenter
    from slime_optimize.commands import run

    code = run.main(job["words"], "slime optimize", Progress(folder).watch)
    if code == 0:
        recoloured(Segmenter.load(Path(job["out"])), folder).save(Path(job["out"]))
    return code


def look(folder: Path, job: dict[str, Any]) -> int:
    """Segment images: a mask of part numbers, an overlay and the mean argmax margin, 0 to 1, for each."""
    from slime_image import load
    from slime_optimize import choose_device, load_predictor
    from slime_optimize.picture import overlay
    from slime_was import margin

    predictor, out = load_predictor(Path(job["segmenter"]), choose_device("auto")), Path(job["out"])
    made = predictor.segmenter
    found = files.read_json(out / "looks.json") or {"parts": list(made.parts), "images": {}}
    for done, (name, path) in enumerate(job["images"].items(), 1):
        image_HW3 = load(path)
        mask_HW, scores_Phw = predictor.mask_and_scores(image_HW3)
        files.write(out / f"{name}.png", files.mask_png(mask_HW, {}))
        files.write(out / f"{name}.jpg", small(overlay(image_HW3, mask_HW, made.colours), _PICTURE))
        found["images"][name] = round(margin(scores_Phw.cpu().numpy()), 4)
        files.write_json(out / "looks.json", found)
        files.write_json(folder / "progress.json", {"step": done, "steps": len(job["images"])})
    return 0


def publish(folder: Path, job: dict[str, Any]) -> int:
    """Run `slime export`."""
    from slime_export.commands import build

    return build.main(job["words"], "slime export")


def rollback(folder: Path, job: dict[str, Any]) -> int:
    """Run `slime repository rollback`."""
    from slime_export.commands import repository

    return repository.main(job["words"], "slime repository")


def clip(folder: Path, job: dict[str, Any]) -> int:
    """Ask a server for the masks of a clip's frames, smoothed; they become a film, overlay.mp4, in the job's folder."""
    from slime_client import Segmenter, SegmenterError
    from slime_client.video.command import Wanted, run
    from slime_client.video.frames import Following

    told: dict[str, Any] = {}
    written = 0.0

    def watch(done: int, frames: int | None) -> None:
        nonlocal written
        told.update(step=done, steps=frames)
        if time.monotonic() - written > _WRITE_SECONDS:
            written = time.monotonic()
            files.write_json(folder / "progress.json", told)

    try:
        wanted = Wanted(source=job["clip"], out=folder, how=Following(smooth=job["smooth"]), formats=["overlay-mp4"])
        with Segmenter(job["url"], job["segmenter"]) as segmenter:
            run(segmenter, wanted, watch)
    except SegmenterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        # Also of a clip that was cancelled or has failed, as far as it went.
        film = {"film": "overlay.mp4"} if (folder / "overlay.mp4").exists() else {}
        files.write_json(folder / "progress.json", told | film)
    return 0


_KINDS = {"learn": learn, "look": look, "publish": publish, "rollback": rollback, "clip": clip}


def main(argv: Sequence[str] | None = None) -> int:
    """Do the job in the folder that the command line names; return its exit code, which is written down too."""
    (name,) = sys.argv[1:] if argv is None else argv
    folder = Path(name)
    job = files.read_json(folder / "job.json")
    try:
        code = _KINDS[job["kind"]](folder, job)
    except Exception as error:
        traceback.print_exc()
        print(f"error: {job['kind']}: {error}", file=sys.stderr)
        code = 1
    if code != 130:  # interrupted: the studio knows
        files.write_json(folder / "ended.json", {"code": code})
    return code


if __name__ == "__main__":
    sys.exit(main())
