"""What the results are of: which optimisations, measured how, in which table. It runs nothing itself.

A variant is a preset with changes. Changes of what happens at test time alone need no optimisation of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from slime_optimize.presets import preset
from slime_optimize.settings import Settings

# Settings that decide nothing before the embeddings are learned.
AT_TEST = (
    *("t_test", "extra_timesteps", "noise_samples", "flip_average", "readout", "threshold", "drop_background"),
    *("suppress_first_part", "rescale", "patches", "patch_side", "edge_tolerance"),
)
PARTS = {"readout": "parts"}
TIMESTEPS = (5, 20, 50, 100, 200, 400)


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """A preset, changes of it as JSON-like values, and how many images it learns from."""

    preset: str = "paper"
    changes: Mapping[str, Any] = field(default_factory=dict)
    shots: int = 1


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How an optimised segmenter is measured: changes of its settings, maps, and which of PartScenes' splits."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    use_was: bool = True
    split: str = "test"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of a table."""

    label: str
    optimisation: Optimisation = Optimisation()
    measurement: Measurement = Measurement()
    paper: str = ""  # the paper's own figure, of its own data


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table of the document. `paper` heads the column of the paper's own figures, empty without one.

    `seeds`: of so many of them, the first, for what would take too long with all.
    """

    title: str
    text: str
    variants: tuple[Variant, ...]
    paper: str = ""
    seeds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far one variant, named by section and label, shall be above another, in points of mean IoU."""

    label: str
    upper: tuple[str, str]
    lower: tuple[str, str]
    goal: int
    smallest: bool = False  # over the smallest third of the parts


GAPS = (
    *(
        Gap(
            label=f"10-shot above 1-shot, `{name}`",
            upper=("shots", f"10-shot, `{name}`"),
            lower=("shots", f"1-shot, `{name}`"),
            goal=4,
        )
        for name in ("paper", "best")
    ),
    *(
        Gap(
            label=f"WAS above cross-attention alone, 1-shot, `{name}`",
            upper=("was", f"1-shot, `{name}`, WAS"),
            lower=("was", f"1-shot, `{name}`, cross-attention alone"),
            goal=4,
        )
        for name in ("paper", "best")
    ),
    Gap(label="`best` above `paper`, 1-shot", upper=("presets", "`best`"), lower=("presets", "`paper`"), goal=3),
    Gap(
        label="`best` above `paper` learned and read over the parts, 1-shot",
        upper=("presets", "`best`"),
        lower=("presets", "`paper`, learned and read over the parts"),
        goal=3,
    ),
    Gap(
        label="the same on the smallest third of the parts",
        upper=("presets", "`best`"),
        lower=("presets", "`paper`"),
        goal=5,
        smallest=True,
    ),
)


def sections(recommended: Mapping[str, Any]) -> dict[str, Section]:
    """By the names that --only takes; `recommended` is what the backbone's folder says suits it."""
    paper, best = preset("paper", recommended), preset("best", recommended)
    return {
        "shots": _shots(),
        "was": _was(),
        "losses": _losses(),
        "t_test": _timesteps(paper),
        "presets": _presets(),
        "ablation": _ablation(paper, best),
        "tried": _tried(best),
        "search": _search(paper),
    }


def _shots() -> Section:
    return Section(
        title="One image and ten",
        text="With ten images, one further image chooses among the embeddings of the run, as in the paper.",
        variants=tuple(
            Variant(
                label=f"{shots}-shot, `{name}`",
                optimisation=Optimisation(preset=name, shots=shots),
            )
            for name in ("paper", "best")
            for shots in (1, 10)
        ),
    )


def _was() -> Section:
    rows = [
        (name, shots, use_was, figure)
        for name, shots, figures in (
            ("paper", 1, ("", "")),
            ("paper", 10, ("62.7 ± 1.3", "68.3 ± 1.0")),
            ("best", 1, ("", "")),
        )
        for use_was, figure in zip((False, True), figures, strict=True)
    ]
    return Section(
        title="With and without WAS maps at test time",
        text="The paper's table 1: masks from the cross-attention maps alone, and from the WAS maps.",
        paper="paper, 10-sample car",
        variants=tuple(
            Variant(
                label=f"{shots}-shot, `{name}`, {'WAS' if use_was else 'cross-attention alone'}",
                optimisation=Optimisation(preset=name, shots=shots),
                measurement=Measurement(use_was=use_was),
                paper=figure,
            )
            for name, shots, use_was, figure in rows
        ),
    )


def _losses() -> Section:
    rows: tuple[tuple[str, dict[str, float], str], ...] = (
        ("all three losses", {}, "68.3"),
        ("without the WAS loss (alpha 0)", {"alpha": 0.0}, "68.0"),
        ("without the diffusion loss (beta 0)", {"beta": 0.0}, "55.8"),
    )
    return Section(
        title="Losses",
        text="1-shot, preset `paper`.",
        paper="paper, 10-sample car",
        variants=tuple(
            Variant(label=label, optimisation=Optimisation(changes=changes), paper=figure)
            for label, changes, figure in rows
        ),
    )


def _timesteps(paper: Settings) -> Section:
    figures = {5: "65.2", 20: "65.9", 100: "68.3"}
    own = f"the backbone's own is {paper.t_test}, learned at {paper.t_opt[0]} to {paper.t_opt[1]}"
    return Section(
        title="The timestep at test time",
        text=f"1-shot, preset `paper`, the same embeddings throughout; {own}.",
        paper="paper, 10-sample car, learned at 5 to 100",
        variants=tuple(
            Variant(
                label=f"t_test {timestep}",
                measurement=Measurement(changes={} if timestep == paper.t_test else {"t_test": timestep}),
                paper=figures.get(timestep, ""),
            )
            for timestep in sorted({*TIMESTEPS, paper.t_test})
        ),
    )


def _presets() -> Section:
    return Section(
        title="Presets",
        text="1-shot. `reference` is what the published code computes, `best` what scored highest on validation. Read "
        "literally, eq. 3 is a softmax over all 77 tokens in each head, for which heads of 16 channels are too weak; "
        "the rows between say what `paper` scores when its cross maps are one softmax over the parts.",
        variants=(
            Variant(label="`paper`"),
            Variant(label="`paper`, read over the parts", measurement=Measurement(changes=PARTS)),
            Variant(
                label="`paper`, learned and read over the parts",
                optimisation=Optimisation(changes={"cross_entropy": "logits", **PARTS}),
            ),
            *(Variant(label=f"`{name}`", optimisation=Optimisation(preset=name)) for name in ("reference", "best")),
        ),
    )


def _ablation(paper: Settings, best: Settings) -> Section:
    return Section(
        title="What each choice of `best` is worth",
        text="1-shot, one seed, on PartScenes' validation images, on which the choices were made: `best` with one "
        "setting back at that of `paper`.",
        seeds=1,
        variants=(
            Variant(
                label="`best`", optimisation=Optimisation(preset="best"), measurement=Measurement(split="validation")
            ),
            *(_without(name, value, best) for name, value in differences(paper, best).items()),
            Variant(label="`paper`", measurement=Measurement(split="validation")),
        ),
    )


def _tried(best: Settings) -> Section:
    """What the backbone's own settings say of time is the base of what is said of it here."""
    high = best.t_opt[1]
    at_test: dict[str, dict[str, Any]] = {
        "the mirrored image's maps averaged in": {"flip_average": True},
        "two draws of noise": {"noise_samples": 2},
        "three timesteps": {"extra_timesteps": [best.t_test // 2, (best.t_test + high) // 2]},
        "2 x 2 patches of 5/8 of the side": {"patches": 2, "patch_side": 0.625},
        "the first part suppressed (published)": {"suppress_first_part": True},
    }
    learned: dict[str, dict[str, Any]] = {
        "a falling learning rate (cosine)": {"schedule": "cosine"},
        "twice the steps, falling": {"schedule": "cosine", "steps": 2 * best.total_steps(1)},
        "alpha 3": {"alpha": 3.0},
        "beta 0": {"beta": 0.0},
    }
    validation, made = Measurement(split="validation"), Optimisation(preset="best")
    return Section(
        title="What else was tried",
        text="1-shot, one seed, on validation images: `best` with one thing changed. None of it is in `best`.",
        seeds=1,
        variants=(
            Variant(label="`best`", optimisation=made, measurement=validation),
            *(
                Variant(label=label, optimisation=made, measurement=Measurement(changes=changes, split="validation"))
                for label, changes in at_test.items()
            ),
            *_learned("best", learned),
        ),
    )


def _search(paper: Settings) -> Section:
    """The preset's own row says what `slime.json` of the backbone has taken from this."""
    rates = [rate for rate in (0.01, 0.03, 0.1, 0.3) if rate != paper.learning_rate]
    changes: dict[str, dict[str, Any]] = {
        **{f"learning rate {rate}": {"learning_rate": rate} for rate in rates},
        "twice the steps": {"steps": 2 * paper.total_steps(1)},
    }
    validation = Measurement(split="validation")
    return Section(
        title="The learning rate and the steps of `paper`",
        text="1-shot, one seed, on validation images: `paper` was given the same search, for a fair comparison.",
        seeds=1,
        variants=(
            Variant(label=f"`paper`: {paper.learning_rate}, {paper.total_steps(1)} steps", measurement=validation),
            *_learned("paper", changes),
        ),
    )


def _learned(name: str, changes: Mapping[str, Mapping[str, Any]]) -> Iterator[Variant]:
    """The preset with changes, each learned anew, on validation images."""
    for label, values in changes.items():
        optimisation = Optimisation(preset=name, changes=values)
        yield Variant(label=label, optimisation=optimisation, measurement=Measurement(split="validation"))


def differences(these: Settings, those: Settings) -> dict[str, Any]:
    """The settings of `these` that those differ in, as JSON-like values."""
    other = those.as_json()
    return {name: value for name, value in these.as_json().items() if value != other[name]}


def _without(name: str, value: Any, best: Settings) -> Variant:
    shown = "the paper's" if name == "layers" else value
    label = f"{name} {shown} instead of {'its own' if name == 'layers' else best.as_json()[name]}"
    if name in AT_TEST:
        measurement = Measurement(changes={name: value}, split="validation")
        return Variant(label=label, optimisation=Optimisation(preset="best"), measurement=measurement)
    optimisation = Optimisation(preset="best", changes={name: value})
    return Variant(label=label, optimisation=optimisation, measurement=Measurement(split="validation"))
