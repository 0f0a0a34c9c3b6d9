"""The model that a project in Label Studio is connected to: it predicts, and learns from what is painted there.

    PROJECT/label-studio.json   the project in Label Studio, what it asked for, and which task became which image

Label Studio only says that there is something new. The annotations are then fetched, each task's newest becomes an
example of the studio's project, and a run is queued that learns on from the newest segmenter where that can be. What it
learned is published under the project's name. One run at a time: what is finished meanwhile waits for the next.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from slime_client import Segmenter, SegmenterError
from slime_repository import listing
from slime_repository.errors import RepositoryError
from slime_studio import files
from slime_studio.errors import StudioError
from slime_studio.jobs import DONE, QUEUED, RUNNING
from slime_studio.label_studio.fetch import LabelStudio
from slime_studio.label_studio.labels import Labels, read_config
from slime_studio.pictures import take
from slime_studio.studio import Studio
from slime_was import margin

_POLL_SECONDS = 1.0
_END_SECONDS = 10.0
_START_SECONDS = 60.0  # that a server may take to start
_PREDICT_SECONDS = 80.0  # after which no further task is segmented: Label Studio waits for 100
_NOTHING = "nothing learned yet"


class Backend:
    """One studio's answers to one project of a Label Studio. Raises StudioError for everything that cannot be done."""

    def __init__(self, studio: Studio, source: LabelStudio) -> None:
        self._studio, self._source = studio, source
        self._path = studio.project.folder / "label-studio.json"
        self._turn = threading.RLock()
        facts: dict[str, Any] = {"project": None, "asked": 0, "answered": 0, "wanted": 0, "tasks": {}}
        self._facts = facts | files.read_json(self._path)
        self._problem, self._refused = "", dict[str, str]()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="label studio", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop learning what is new; a job that runs goes on."""
        self._ending.set()
        self._source.close()  # which ends what is being fetched
        self._thread.join(_END_SECONDS)

    def set_up(self, project: Any, config: str, steps: int | None) -> str:
        """Take the label config's parts into the studio's project; return the model's version.

        `steps`: how many a run has from now on, None for as many as `slime optimize` takes.
        """
        labels = read_config(config)  # first: a project that is refused is not bound to
        self._bind(project)
        self._set_parts(labels)
        with self._turn:
            if steps != self._facts.get("steps"):
                self._keep(steps=steps)
        return self.version()

    def version(self) -> str:
        """Return what predictions are made with, or why there is nothing yet."""
        row = self._published()
        if row is not None:
            return f"{row.name} version {row.version}"
        return f"{_NOTHING} ({self._problem})" if self._problem else _NOTHING

    def state(self) -> dict[str, Any]:
        """Return what a person asks who sees no predictions: version, tasks learned from, what was refused, jobs."""
        jobs = self._studio.jobs.every()
        kept = ("number", "title", "state", "error")
        return {
            "project": self._facts["project"],
            "model_version": self.version(),
            "examples": sorted(map(int, self._facts["tasks"])),
            "refused": self._refused,
            "problem": self._problem or None,
            "waiting": self._facts["asked"] != self._facts["answered"],
            "jobs": [{name: job[name] for name in kept if name in job} for job in jobs[:10]],
        }

    def predict(self, project: Any, config: str, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        """Return each task's prediction as Label Studio keeps it; None for one that cannot be segmented, which is told.

        Before anything is published there are none.
        """
        labels, deadline = read_config(config), time.monotonic() + _PREDICT_SECONDS
        self._bind(project)
        row = self._published()
        if row is None:
            return [None] * len(tasks)
        if not set(row.parts) & set(labels.controls):
            raise StudioError(
                f"segmenter {row.name}: has the parts {', '.join(row.parts)}, none of which the label config has; add "
                "them there, or start the studio with another folder or --repository",
                409,
            )
        found: list[dict[str, Any] | None] = []
        try:
            with Segmenter(self._server(), self._studio.project.name) as segmenter:
                for task in tasks:
                    late = time.monotonic() > deadline  # those that are left are asked for again
                    found.append(None if late else self._prediction(segmenter, labels, task))
        except SegmenterError as error:
            raise StudioError(str(error), 503) from error
        return found

    def ask(self, project: Any, *, anew: bool) -> None:
        """Note that there are annotations to learn from; `anew`: learn even where none has changed."""
        self._bind(project)
        with self._turn:
            asked = self._facts["asked"] + 1
            self._keep(asked=asked, wanted=asked if anew else self._facts["wanted"])

    def _prediction(self, segmenter: Segmenter, labels: Labels, task: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            taken = take(self._image(task, labels), "image")
            mask = segmenter.segment(taken.data, scores=True)
            row = self._published()
            if row is None or segmenter.description.about.get("created") != row.created:
                raise StudioError("server: does not have the newest version yet; ask again")
        except (StudioError, SegmenterError) as error:
            _tell(f"task {task.get('id')}: {error}")
            return None
        score = 0.0 if mask.scores is None else round(margin(mask.scores), 4)
        version = f"{row.name} version {row.version}"
        return {"model_version": version, "score": score, "result": labels.regions(mask.array, mask.parts)}

    def _image(self, task: Mapping[str, Any], labels: Labels) -> bytes:
        address = (task.get("data") or {}).get(labels.key)
        if not isinstance(address, str) or not address:
            raise StudioError(f"image: the task has no {labels.key!r}, expected its address there; import it anew")
        return self._source.image(address)

    def _work(self) -> None:
        while not self._ending.wait(_POLL_SECONDS):
            try:
                self._step()
            except StudioError as error:
                self._problem = str(error)
                _tell(self._problem)
            except Exception:  # such as a full disk, which may have room again
                traceback.print_exc()

    def _step(self) -> None:
        """Publish what was learned; else learn what is new. Nothing while a run or an export is under way."""
        jobs = [job for job in self._studio.jobs.every() if job["kind"] in ("learn", "publish")]
        if any(job["state"] in (QUEUED, RUNNING) for job in jobs):
            return
        learned = [job for job in jobs if job["kind"] == "learn" and job["state"] == DONE and job.get("publish")]
        tried = {job["segmenter"] for job in jobs if job["kind"] == "publish"}
        if learned and learned[0]["segmenter"] not in tried:
            self._studio.publish(learned[0]["segmenter"], learned[0]["publish"], None, False)
            return
        asked = self._facts["asked"]
        if asked == self._facts["answered"]:
            return
        try:
            self._problem = ""
            self._learn(anew=self._facts["wanted"] > self._facts["answered"])
        finally:
            with self._turn:
                self._keep(answered=asked)
            self._studio.events.tell("state")

    def _learn(self, *, anew: bool) -> None:
        number = self._facts["project"]
        labels = read_config(self._source.json(f"/api/projects/{number}/")["label_config"])
        self._set_parts(labels)
        changed = self._fetch(number, labels)
        if not (changed or anew):
            return
        project = self._studio.project
        names = [part.name for part in project.parts]
        fitting = (each for each in self._studio.segmenters() if each["parts"] == names)
        begin = next((each["name"] for each in fitting if each["backbone"] == project.backbone), None)
        try:
            self._studio.learn(self._facts.get("steps"), begin, 0, publish=project.name)
        except StudioError as error:
            raise StudioError("; ".join([str(error), *self._refused.values()])) from error

    def _fetch(self, number: int, labels: Labels) -> bool:
        """Make each annotated task an example; return whether any is new, changed or gone."""
        known, found, refused = dict(self._facts["tasks"]), dict[str, Any](), dict[str, str]()
        there = {image["id"] for image in self._studio.project.images()}
        for task in self._source.json(f"/api/projects/{number}/export", exportType="JSON"):
            finished = [each for each in task.get("annotations", []) if not each.get("was_cancelled")]
            if not finished:
                continue
            newest = max(finished, key=lambda each: (bool(each.get("ground_truth")), str(each.get("updated_at"))))
            name = str(task["id"])
            mark = [newest["id"], newest.get("updated_at"), list(labels.parts), labels.key]
            try:
                old = known.get(name, {})
                same = old.get("mark") == mark and old["image"] in there
                found[name] = {"mark": mark, "image": old["image"] if same else self._take(task, newest, labels)}
            except StudioError as error:
                refused[name] = f"task {name}: {error}"
                _tell(refused[name])
        used = {each["image"] for each in found.values()}
        for gone in ({each["image"] for each in known.values()} & there) - used:
            self._studio.project.set_example(gone, False)
        self._refused = refused
        with self._turn:
            self._keep(tasks=found)
        return found != known

    def _take(self, task: Mapping[str, Any], annotation: Mapping[str, Any], labels: Labels) -> str:
        """Keep a task's image with an annotation's mask, as an example; return the image's id."""
        name = f"task-{task['id']}"
        taken, project = take(self._image(task, labels), name), self._studio.project
        mask_HW = labels.mask(annotation.get("result") or [], taken.height, taken.width)
        image = project.add_image(taken, name)
        project.set_mask(image, project.values(mask_HW, labels.parts))
        project.set_example(image, True)
        return image

    def _set_parts(self, labels: Labels) -> None:
        """Add the labels that are no parts yet. Raises StudioError for parts that the label config lacks."""
        names = [part.name for part in self._studio.project.parts]
        lacking = [name for name in names[1:] if name not in labels.parts]
        if lacking:
            raise StudioError(
                f"label config: lacks {lacking[0]!r}, a part of this studio's project; add the label, or remove the "
                "part on the studio's page, or start the studio with another folder"
            )
        for name in labels.parts[1:]:
            if name not in names:
                self._studio.project.add_part(name)
                self._studio.events.tell("state")

    def _bind(self, project: Any) -> None:
        """Hold to the first project that asks: "3.1700000000" or 3. Raises StudioError for another."""
        try:
            number = int(str(project).partition(".")[0])
        except ValueError as error:
            raise StudioError(f"project: got {str(project)[:40]!r}, expected a number") from error
        with self._turn:
            if self._facts["project"] is None:
                self._keep(project=number)
            if self._facts["project"] != number:
                raise StudioError(
                    f"project: this studio learns for Label Studio's project {self._facts['project']}, got {number}; "
                    "start a studio with another folder for it"
                )

    def _published(self) -> listing.Row | None:
        """Return what is published under the project's name."""
        if not self._studio.repository.is_dir():
            return None
        try:
            rows = listing.rows(self._studio.repository)
        except RepositoryError as error:
            raise StudioError(str(error), 503) from error
        return next((row for row in rows if row.name == self._studio.project.name), None)

    def _server(self) -> str:
        """Return the address of the studio's server, which is started where it does not run."""
        serving, deadline = self._studio.serving, time.monotonic() + _START_SECONDS
        if serving.state()["state"] in ("stopped", "failed"):
            serving.start()
            self._studio.events.tell("server")
        while (state := serving.state())["state"] == "starting" and time.monotonic() < deadline:
            time.sleep(0.1)
        if state["state"] != "ready":
            raise StudioError(f"server: does not start ({state.get('error', 'it takes too long')}); ask again", 503)
        return str(state["url"])

    def _keep(self, **facts: Any) -> None:
        kept = {**self._facts, **facts}
        files.write_json(self._path, kept)
        self._facts = kept


def _tell(line: str) -> None:
    print(f"label studio: {line}", file=sys.stderr, flush=True)
