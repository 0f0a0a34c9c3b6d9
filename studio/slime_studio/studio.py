"""What the page can ask for, without HTTP: learning, looking, correcting, publishing, rolling back, trying."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from slime_client import Mask as ServedMask
from slime_client import Segmenter as ServedSegmenter
from slime_client import SegmenterError
from slime_client.formats import FORMATS
from slime_client.video.reading import opened
from slime_repository import layout, listing
from slime_repository.errors import RepositoryError
from slime_studio import files
from slime_studio.errors import StudioError, disk_error
from slime_studio.events import Events
from slime_studio.files import Mask
from slime_studio.jobs import Jobs
from slime_studio.opening import Opening
from slime_studio.pictures import small, take
from slime_studio.project import Project, copied
from slime_studio.serving import Serving

_RESULTS = 200  # masks of the served model that are kept for downloading
_DOWNLOADS = ("palette", "coco", "geojson", "npz")
_PARITY = "parity.json"
_SEGMENTER = re.compile(r"v\d+")  # names of segmenters, by the job that learned them


class Studio:
    """A project that is open, its jobs, its server, and the pages that look at it."""

    def __init__(self, project: Project, repository: Path | None = None) -> None:
        self.project, self.opening, self.events = project, Opening(project), Events()
        self.repository = (repository or project.folder / "repository").resolve()
        self.serving = Serving(project.folder / "server", self.repository)
        self._results: OrderedDict[str, tuple[ServedMask, str]] = OrderedDict()
        self._made = 0
        self.jobs = Jobs(
            project.folder / "jobs", lambda number: self.events.tell("job", number=number), done=self._follow
        )
        self.jobs.start()  # now that `_follow` can add to them

    def close(self) -> None:
        """End the studio; a job that runs goes on, the server it started is stopped."""
        self.events.close()
        self.jobs.close()
        self.serving.stop()
        self.project.close()

    def state(self) -> dict[str, Any]:
        """Return everything that the page shows, but for masks."""
        return {
            "project": self.project.folder.name,
            "folder": str(self.project.folder),
            "backbone": self.project.backbone,
            "parts": [asdict(part) for part in self.project.parts],
            "images": self.project.images(),
            "jobs": self.jobs.every(),
            "segmenters": self.segmenters(),
            "repository": str(self.repository),
            "server": self.serving.state(),
        }

    def segmenters(self) -> list[dict[str, Any]]:
        """Return what was learned, the newest first: name, parts, mean IoU on its training images, and its looks."""
        found = [self._told(path) for path in (self.project.folder / "segmenters").glob("v*/segmenter.json")]
        return sorted(found, key=lambda each: -int(each["name"][1:]))

    def learn(self, steps: int | None, begin: str | None, seed: int, publish: str | None = None) -> int:
        """Queue a run on the images marked as examples, as they are painted now; `begin`: learn on from there.

        `publish` is kept with the job: the name to publish it under, for who follows it.
        """
        masks, parts = self.project.examples(), self.project.parts
        names = [part.name for part in parts]
        if begin is not None:
            begun = self._segmenter(begin)
            if begun["parts"] != names:
                raise StudioError(
                    f"learn on: {begin} has the parts {', '.join(begun['parts'])}, the project {', '.join(names)}; "
                    "learn anew"
                )
        if steps is not None and not 1 <= steps <= 100_000:
            raise StudioError(f"steps: got {steps}, expected 1 to 100000")

        def make(number: int, folder: Path) -> dict[str, Any]:
            files.write_json(folder / "masks" / "parts.json", names)
            images = []
            for name, mask_HW in masks.items():
                path = self.project.image_path(name)
                images.append(folder / "images" / path.name)
                try:
                    copied(path, images[-1])
                    Image.fromarray(mask_HW).save(folder / "masks" / f"{name}.png")
                except OSError as error:
                    raise disk_error(error, "job") from error
            out = self.project.folder / "segmenters" / f"v{number}"
            words = ["--image", *map(str, images), "--mask", *(str(folder / "masks" / f"{each}.png") for each in masks)]
            words += ["--backbone", self.project.backbone, "--out", str(out), "--no-validation", "--quiet"]
            words += ["--checkpoint-every", "5", "--seed", str(seed)]
            words += ["--steps", str(steps)] if steps else []
            words += ["--begin", str(self.project.folder / "segmenters" / begin)] if begin else []
            return {
                "words": words,
                "out": str(out),
                "colours": [part.colour for part in parts],
                "begin": begin,
                "publish": publish,
                "images": list(masks),
                "segmenter": f"v{number}",
            }

        how = f"on from {begin}" if begin else "anew"
        return self.jobs.add("learn", f"Learn {how} from {len(masks)} image{'s' * (len(masks) > 1)}", make)

    def look(self, name: str) -> int | None:
        """Queue segmenting the images that this segmenter has not segmented yet; None where there is none."""
        looked = self._segmenter(name)["looks"]
        images = {
            each["id"]: str(self.project.image_path(each["id"]))
            for each in self.project.images()
            if each["id"] not in looked
        }
        if not images:
            return None
        facts = {
            "images": images,
            "segmenter": str(self.project.folder / "segmenters" / name),
            "out": str(self._looks(name)),
        }
        count = f"{len(images)} image{'s' * (len(images) > 1)}"
        return self.jobs.add("look", f"Segment {count} with {name}", lambda number, folder: facts)

    def look_picture(self, name: str, image: str) -> Path:
        """Return the small picture of an image as a segmenter segments it."""
        self._segmenter(name)
        self.project.image(image)
        path = self._looks(name) / f"{image}.jpg"
        if not path.exists():
            raise StudioError(f"image {image}: was not segmented by {name} yet", 404)
        return path

    def look_mask(self, name: str, image: str) -> Mask:
        """Return a segmenter's mask of an image in the project's part values, to be corrected."""
        parts = self._segmenter(name)["parts"]
        self.project.image(image)
        found = files.read_mask(self._looks(name) / f"{image}.png")
        if found is None:
            raise StudioError(f"image {image}: was not segmented by {name} yet", 404)
        return self.project.values(found, parts)

    def publish(self, segmenter: str, name: str, url: str | None, force: bool) -> int:
        """Queue an export into the repository; a server at `url`, or the studio's own, follows."""
        self._segmenter(segmenter)
        try:
            layout.check_name(name)
        except RepositoryError as error:
            raise StudioError(str(error)) from error
        folder = self.project.folder / "segmenters" / segmenter
        words = [str(folder), "--repository", str(self.repository), "--name", name]
        words += ["--url", url] if (url := url or self.serving.url) else []
        words += ["--force"] if force else []
        facts = {"words": words, "segmenter": segmenter, "name": name}
        return self.jobs.add("publish", f"Publish {segmenter} as {name}", lambda number, folder: facts)

    def roll_back(self, name: str, version: int, url: str | None) -> int:
        """Queue serving an older version's content again, as a new version."""
        words = ["rollback", str(self.repository), name, "--to", str(version)]
        words += ["--url", url] if (url := url or self.serving.url) else []
        facts = {"words": words, "name": name}
        return self.jobs.add("rollback", f"Serve version {version} of {name} again", lambda number, folder: facts)

    def published(self) -> list[dict[str, Any]]:
        """Return what the repository holds, each segmenter with the parity report of the version that serves."""
        if not self.repository.is_dir():
            return []
        try:
            found = [asdict(row) for row in listing.rows(self.repository)]
        except RepositoryError as error:
            raise StudioError(str(error), 500) from error
        for row in found:
            row["parity"] = self._parity(row["name"])
        return found

    def segment(self, url: str | None, name: str, data: bytes, label: str) -> dict[str, Any]:
        """Ask the server at `url`, or the studio's own, for the mask of an image; it is kept to be downloaded."""
        if not (url := url or self.serving.url):
            raise StudioError("server: none runs; start it, or give the address of one", 409)
        taken = take(data, label)
        try:
            with ServedSegmenter(url, name) as segmenter:
                mask = segmenter.segment(taken.data)
            overlay = np.asarray(mask.overlay())
        except SegmenterError as error:
            raise StudioError(str(error), 502) from error
        self._made += 1
        made = f"r{self._made}"
        files.write(self.project.folder / "server" / f"{made}.jpg", small(overlay, 640))
        self._results[made] = (mask, Path(label).name)
        while len(self._results) > _RESULTS:
            old, _ = self._results.popitem(last=False)
            (self.project.folder / "server" / f"{old}.jpg").unlink(missing_ok=True)
        shown = np.bincount(mask.array.ravel(), minlength=len(mask.parts)) / mask.array.size
        shares = {part: round(float(share), 4) for part, share in zip(mask.parts, shown, strict=True)}
        return {"id": made, "name": label, "shares": shares}

    def clip(self, url: str | None, name: str, label: str, received: Path) -> int:
        """Queue having the server at `url`, or the studio's own, segment a clip, which was received into a file."""
        if not (url := url or self.serving.url):
            raise StudioError("server: none runs; start it, or give the address of one", 409)
        try:
            opened(received)
        except SegmenterError as error:
            raise StudioError(str(error).replace(str(received), label[:200])) from error

        def make(number: int, folder: Path) -> dict[str, Any]:
            path = folder / f"clip{received.suffix}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                received.replace(path)
            except OSError as error:
                raise disk_error(error, "job") from error
            return {"clip": str(path), "url": url, "segmenter": name, "name": label, "smooth": "flow"}

        return self.jobs.add("clip", f"Segment {label[:80]} with {name}", make)

    def result_picture(self, made: str) -> Path:
        """Return the picture of a mask that the server answered."""
        self._result(made)
        return self.project.folder / "server" / f"{made}.jpg"

    def download(self, made: str, form: str) -> tuple[bytes, str]:
        """Return the content and name of a file of a mask that the server answered: palette, coco, geojson or npz."""
        mask, name = self._result(made)
        if form not in _DOWNLOADS:
            raise StudioError(f"download: got {form[:40]!r}, expected one of {', '.join(_DOWNLOADS)}", 404)
        try:
            FORMATS[form].check()
            return FORMATS[form].encode(mask, name), FORMATS[form].path(Path(), Path(name).stem).name
        except SegmenterError as error:
            raise StudioError(str(error), 500) from error

    def _follow(self, job: Mapping[str, Any]) -> None:
        """What was learned segments all images, to be looked at."""
        if job["kind"] == "learn":
            self.look(job["segmenter"])

    def _segmenter(self, name: str) -> dict[str, Any]:
        path = self.project.folder / "segmenters" / name / "segmenter.json"
        if not (_SEGMENTER.fullmatch(name) and path.exists()):
            raise StudioError(f"segmenter {name[:40]!r}: is not in this project", 404)
        return self._told(path)

    def _told(self, path: Path) -> dict[str, Any]:
        facts = files.read_json(path)
        begun = facts.get("begun_from")
        return {
            "name": path.parent.name,
            "parts": facts["parts"],
            "created": facts["created"],
            "backbone": facts["backbone"]["id"],
            "begun_from": Path(begun["segmenter"]).name if begun else None,
            "images": len(facts["training_images"]),
            "iou": facts["metrics"]["training"]["mean_iou"],
            "seconds": facts["metrics"]["seconds"],
            "looks": files.read_json(self._looks(path.parent.name) / "looks.json").get("images", {}),
        }

    def _looks(self, name: str) -> Path:
        return self.project.folder / "predictions" / name

    def _parity(self, name: str) -> dict[str, Any] | None:
        """Return the parity report of the UNet that serves."""
        pins = layout.pinned(self.repository / name)
        unet = layout.unet_of(self.repository / name)
        if unet is None:
            return None
        try:
            text = (self.repository / unet / str(pins[unet]) / _PARITY).read_text(encoding="utf-8")
            report: dict[str, Any] = json.loads(text)
        except (OSError, ValueError):
            return None
        return report

    def _result(self, made: str) -> tuple[ServedMask, str]:
        if made not in self._results:
            raise StudioError("result: is no longer kept; segment the image again", 404)
        return self._results[made]
