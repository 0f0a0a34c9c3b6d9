"""How still and how right the masks of clips are: single frames, their running mean, and history along the flow.

    python -m benchmarks.quality.video --json docs/video-consistency.json --page docs/video-consistency.md

Clips are PartScenes in motion, whose flow and occlusion are exact; segmenters those of benchmarks.quality.results,
preset `best`, 1-shot, learned here where they are not there yet, and run in PyTorch, as the server answers. Settings
are chosen on the clips for choosing and measured once on those for testing. Beside the page go a plot and, as .webp,
one clip with its masks. At the end the server and the client are timed on a clip, which wants a machine at rest:
`--parts speed` does that alone, and keeps the other figures of the file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.common import command_line, keeping, machine, served_repository
from benchmarks.common.figures import ratio
from benchmarks.common.server import launched
from benchmarks.common.sides import ROOT
from benchmarks.quality.consistency import Figures, measured, over_kinds
from benchmarks.quality.laboratory import Job, Laboratory, add_options
from benchmarks.quality.study import Optimisation
from benchmarks.quality.video_page import (
    FLOW,
    FLOW_REUSED,
    LIVE,
    MARGIN,
    MEAN,
    SINGLE,
    SINGLE_REUSED,
    TRUTH,
    Colours,
    Masks,
    animate,
    page,
    plot,
)
from PIL import Image

from slime_backbone import motion
from slime_backbone.motion import Clip
from slime_client import Segmenter as Client
from slime_client.video.frames import Following, Track
from slime_client.video.reading import Picture
from slime_client.video.smoothing import Settings, Smooth, Smoother
from slime_optimize.method.prediction import Predictor
from slime_optimize.segmenter import Segmenter
from slime_was import segment, sharpened

PARTS = ("quality", "speed")
_SERVED_FRAMES, _ROUNDS = 200, 3


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to smooth, and its settings."""

    how: Smooth
    settings: Settings

    def masks(self, film: Film) -> Masks:
        """Return the masks of a film's frames."""
        smoother = Smoother(self.how, self.settings)
        decided = [mask for frame in zip(film.clip.images, film.scores, strict=True) for mask in smoother(*frame)]
        return np.stack(decided + smoother.rest())


@dataclass(frozen=True, kw_only=True)
class Film:
    """A clip with what a segmenter answers to each frame: masks, and the scores (T, K, h, w) that they come from."""

    clip: Clip
    colours: Colours
    masks: Masks
    scores: npt.NDArray[np.float32]

    def reusing(self) -> tuple[Film, float]:
        """Return the film as `skip_still` segments it, and the share of frames that have another frame's answer."""
        track, sources = Track(Following(skip_still=True)), [0]
        for index, image in enumerate(self.clip.images):
            still = track.is_still(Picture(index=index, time=index / 25, name=str(index), image=image))
            sources.append(sources[-1] if still else index)
        chosen = sources[1:]
        share = 1 - len(set(chosen)) / len(chosen)
        return replace(self, masks=self.masks[chosen], scores=self.scores[chosen]), share


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.parser(__doc__)
    add_options(parser, (0,))
    parser.add_argument("--clips", type=int, help="of each class and split, to see that everything works")
    parser.add_argument("--frames", type=int, default=motion.FRAMES, help="of each clip")
    parser.add_argument("--repository", type=Path, default=ROOT / "build" / "video" / "repository", help="to serve")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured; the rest is kept")
    keeping.add_options(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    laboratory = Laboratory.of(options)
    result = keeping.read(options.json) if options.json and options.json.exists() else {"served": None}
    if "quality" in options.parts:
        result |= _quality(laboratory, options)
    if "rows" not in result:
        parser.error("--parts speed: got no figures of quality to stand beside, expected them in the file of --json")
    if "speed" in options.parts:
        result["served"] = served(laboratory, options)
    keeping.keep(options, result, page, plot=plot)
    return 0


def served(laboratory: Laboratory, options: argparse.Namespace) -> dict[str, Any]:
    """Return how many frames a second the server and the client make of a folder of frames, beside single images.

    Every way has its turn in each round; rates are medians over the rounds.
    """
    kind, seed = options.kinds[0], options.seeds[0]
    folder = laboratory.segmenter(Job(kind=kind, seed=seed, optimisation=Optimisation(preset="best")))
    name = f"{kind}-{seed}-{folder.name[:8]}"
    served_repository.export(folder, options.repository, name)
    images = [image for clip in motion.clips(kind, "testing") for image in clip.images][:_SERVED_FRAMES]
    rates: dict[str, list[float]] = {}
    with launched(options.repository) as server, Client(server.url, name) as client, TemporaryDirectory() as frames:
        for index, image in enumerate(images):
            Image.fromarray(image).save(Path(frames) / f"{index:06}.png")
        ways: dict[str, Callable[[], Iterable[Any]]] = {"single": lambda: client.segment_many(images)}
        ways |= {smooth: partial(client.video, frames, smooth=smooth) for smooth in get_args(Smooth)}
        for begin in range(_ROUNDS + 1):
            for way, make in ways.items():
                begun = time.perf_counter()
                assert len(list(make())) == len(images)
                if begin:  # The first round pays for what is set up once.
                    rates.setdefault(way, []).append(len(images) / (time.perf_counter() - begun))
            print(f"round {begin}: {rates}", flush=True)
    ratios = {way: ratio(of_way, rates["single"]) for way, of_way in rates.items() if way != "single"}
    medians = {way: round(median(of), 2) for way, of in rates.items()}
    return {"frames": len(images), "rates": medians, "ratios": ratios, "machine": machine.facts()}


def _quality(laboratory: Laboratory, options: argparse.Namespace) -> dict[str, Any]:
    """Choose the settings, and measure them once."""
    chosen, tried = _chosen(laboratory, options)
    rows, still = _tested(laboratory, options, chosen)
    return {
        "clips": {split: options.clips or count for split, count in motion.COUNTS.items()},
        "frames": options.frames,
        "trial": bool(options.clips or options.steps or options.frames != motion.FRAMES),
        "chosen": {name: {"how": way.how, **asdict(way.settings)} for name, way in chosen.items()},
        "tried": tried,
        "rows": rows,
        "still": round(still, 3),
        "machine": machine.facts(),
    }


def films(laboratory: Laboratory, kind: str, split: str, options: argparse.Namespace) -> Iterator[Film]:
    """Yield the clips of a class and split with a segmenter's answers, of each seed."""
    for seed in options.seeds:
        folder = laboratory.segmenter(Job(kind=kind, seed=seed, optimisation=Optimisation(preset="best")))
        predictor = Predictor(Segmenter.load(folder), laboratory.backbone)
        postprocess = predictor.segmenter.settings.postprocess(laboratory.backbone.image_size)
        for index in range(motion.COUNTS[split])[: options.clips]:
            clip = motion.clip(kind, split, index, frames=options.frames)
            scores = [
                sharpened(predictor.scores([image])[0].numpy(), postprocess, predictor.pixels([image])[0])
                for image in clip.images
            ]
            masks = np.stack([segment(each, *clip.masks.shape[1:]) for each in scores])
            yield Film(clip=clip, colours=predictor.segmenter.colours, masks=masks, scores=np.stack(scores))


def grid() -> dict[str, list[Way]]:
    """Return the settings that are tried of each way."""
    means = [Way(how="mean", settings=Settings(share=share)) for share in (0.3, 0.5, 0.7)]
    flows = [
        Way(how="flow", settings=Settings(weight=weight, rarity=rarity))
        for weight, rarity in product((0.3, 0.5), (0.0, 0.05, 0.1))
    ]
    return {MEAN: means, FLOW: flows}


def _chosen(laboratory: Laboratory, options: argparse.Namespace) -> tuple[dict[str, Way], list[dict[str, Any]]]:
    """Return the best settings of each way on the clips for choosing, and the figures of all that were tried."""
    ways = [(name, way) for name, of_name in grid().items() for way in of_name]
    figures: list[dict[str, Figures]] = [{} for _ in ways]
    single: dict[str, Figures] = {}
    for kind in options.kinds:
        clips, plain = [], []
        smoothed: list[list[Masks]] = [[] for _ in ways]
        for film in films(laboratory, kind, "choosing", options):
            clips.append(film.clip)
            plain.append(film.masks)
            for masks, (_, way) in zip(smoothed, ways, strict=True):
                masks.append(way.masks(film))
        single[kind] = measured(clips, plain, davis=False)
        for found, masks in zip(figures, smoothed, strict=True):
            found[kind] = measured(clips, masks, davis=False)
        print(f"{kind}: {len(ways)} settings tried on {len(clips)} clips", flush=True)
    tried = [
        {
            "way": name,
            **asdict(way.settings),
            **over_kinds(found),
            "least": round(min(found[kind]["miou"] - single[kind]["miou"] for kind in found), 3),
        }
        for (name, way), found in zip(ways, figures, strict=True)
    ]

    chosen = {}
    for name in grid():
        places = [place for place, each in enumerate(tried) if each["way"] == name]
        place = places[best([tried[each] for each in places], over_kinds(single)["miou"])]
        chosen[name] = ways[place][1]
        print(f"{name}: {tried[place]}", flush=True)
    return chosen, [{"way": SINGLE, **over_kinds(single)}, *tried]


def best(tried: Sequence[Mapping[str, Any]], floor: float) -> int:
    """Return the place of the settings with the highest VC 16, of those whose mean IoU is above `floor`, single
    frames', by MARGIN, and in no class under it (`least`); where none is so good, that with the highest mean IoU."""

    def rank(place: int) -> tuple[bool, float]:
        found = tried[place]
        kept = found["miou"] >= floor + MARGIN and found["least"] >= 0
        return kept, found["vc16"] if kept else found["miou"]

    return max(range(len(tried)), key=rank)


def _tested(
    laboratory: Laboratory, options: argparse.Namespace, chosen: Mapping[str, Way]
) -> tuple[dict[str, Any], float]:
    """Return the figures of each way by class, on the clips for testing, and the share of frames that are still."""
    flow = chosen[FLOW]
    at_once = Way(how="flow", settings=Settings(**{**asdict(flow.settings), "ahead": 0}))
    ways: dict[str, Callable[[Film], Masks]] = {
        SINGLE: lambda film: film.masks,
        MEAN: chosen[MEAN].masks,
        FLOW: flow.masks,
        LIVE: at_once.masks,
        SINGLE_REUSED: lambda film: film.reusing()[0].masks,
        FLOW_REUSED: lambda film: flow.masks(film.reusing()[0]),
        TRUTH: lambda film: film.clip.masks,
    }
    rows: dict[str, Any] = {name: {"ms": [], "kinds": {}} for name in ways}
    reused: list[float] = []
    for kind in options.kinds:
        clips: list[Clip] = []
        masks: dict[str, list[Masks]] = {name: [] for name in ways}
        for film in films(laboratory, kind, "testing", options):
            clips.append(film.clip)
            reused.append(film.reusing()[1])
            for name, way in ways.items():
                begun = time.process_time()
                masks[name].append(way(film))
                rows[name]["ms"].append(1e3 * (time.process_time() - begun) / len(film.masks))
            if options.page and len(clips) == 1 and kind == options.kinds[0]:
                shown = [masks[name][0] for name in (SINGLE, FLOW, TRUTH)]
                animate(options.page.with_suffix(".webp"), film.clip.images, film.colours, shown)
        for name, of_name in masks.items():
            rows[name]["kinds"][kind] = measured(clips, of_name)
            print(f"{kind}, {name}: {rows[name]['kinds'][kind]}", flush=True)
    for row in rows.values():
        row["ms"] = round(mean(row["ms"]), 2)
        row["mean"] = over_kinds(row["kinds"])
    return rows, mean(reused)


if __name__ == "__main__":
    raise SystemExit(main())
