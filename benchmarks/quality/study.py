"""What docs/results.md is about: which optimisations, measured how, in which table. It runs nothing itself.

A variant is a preset with changes. Changes of what happens at test time alone need no optimisation of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def variant(
    label: str,
    name: str = "paper",
    changes: Mapping[str, Any] | None = None,
    *,
    shots: int = 1,
    at_test: Mapping[str, Any] | None = None,
    use_was: bool = True,
    split: str = "test",
    paper: str = "",
) -> Variant:
    """Return a row: a preset, changes before learning, and how it is measured."""
    return Variant(
        label=label,
        optimisation=Optimisation(preset=name, changes=changes or {}, shots=shots),
        measurement=Measurement(changes=at_test or {}, use_was=use_was, split=split),
        paper=paper,
    )


def _gap(label: str, upper: tuple[str, str], lower: tuple[str, str], goal: int, smallest: bool = False) -> Gap:
    return Gap(label=label, upper=upper, lower=lower, goal=goal, smallest=smallest)


_BEST, _PAPER = ("presets", "`best`"), ("presets", "`paper`")
_OVER_PARTS = "`paper`, learned and read over the parts"
GAPS = (
    *(
        _gap(f"10-shot above 1-shot, `{name}`", ("shots", f"10-shot, `{name}`"), ("shots", f"1-shot, `{name}`"), 4)
        for name in ("paper", "best")
    ),
    *(
        _gap(
            f"WAS above cross-attention alone, 1-shot, `{name}`",
            ("was", f"1-shot, `{name}`, WAS"),
            ("was", f"1-shot, `{name}`, cross-attention alone"),
            4,
        )
        for name in ("paper", "best")
    ),
    _gap("`best` above `paper`, 1-shot", _BEST, _PAPER, 3),
    _gap(f"`best` above {_OVER_PARTS}, 1-shot", _BEST, ("presets", _OVER_PARTS), 3),
    _gap("the same on the smallest third of the parts", _BEST, _PAPER, 5, smallest=True),
)


def sections(recommended: Mapping[str, Any]) -> dict[str, Section]:
    """Return the tables by the names that --only takes; `recommended` is what the backbone's folder recommends."""
    paper, best = preset("paper", recommended), preset("best", recommended)
    return {
        "shots": Section(
            title="One image and ten",
            text="With ten images, one further image chooses among the embeddings of the run, as in the paper.",
            variants=tuple(
                variant(f"{shots}-shot, `{name}`", name, shots=shots) for name in ("paper", "best") for shots in (1, 10)
            ),
        ),
        "was": Section(
            title="With and without WAS maps at test time",
            text="The paper's table 1: masks from the cross-attention maps alone, and from the WAS maps.",
            paper="paper, 10-sample car",
            variants=tuple(
                variant(f"{shots}-shot, `{name}`, {label}", name, shots=shots, use_was=label == "WAS", paper=figure)
                for name, shots, figures in (
                    ("paper", 1, ("", "")),
                    ("paper", 10, ("62.7 ± 1.3", "68.3 ± 1.0")),
                    ("best", 1, ("", "")),
                )
                for label, figure in zip(("cross-attention alone", "WAS"), figures, strict=True)
            ),
        ),
        "losses": Section(
            title="Losses",
            text="1-shot, preset `paper`.",
            paper="paper, 10-sample car",
            variants=(
                variant("all three losses", paper="68.3"),
                variant("without the WAS loss (alpha 0)", changes={"alpha": 0.0}, paper="68.0"),
                variant("without the diffusion loss (beta 0)", changes={"beta": 0.0}, paper="55.8"),
            ),
        ),
        "t_test": _timesteps(paper),
        "presets": Section(
            title="Presets",
            text="1-shot. `reference` is what the published code computes, `best` what scored highest on validation. "
            "Read literally, eq. 3 is a softmax over all 77 tokens in each head, for which heads of 16 channels are "
            "too weak; the rows between show what `paper` scores when its cross maps are one softmax over the parts.",
            variants=(
                variant("`paper`"),
                variant("`paper`, read over the parts", at_test=PARTS),
                variant(_OVER_PARTS, changes={"cross_entropy": "logits", **PARTS}),
                variant("`reference`", "reference"),
                variant("`best`", "best"),
            ),
        ),
        "ablation": Section(
            title="What each choice of `best` is worth",
            text="1-shot, one seed, on PartScenes' validation images, on which the choices were made: `best` with one "
            "setting back at that of `paper`.",
            seeds=1,
            variants=(
                variant("`best`", "best", split="validation"),
                *(_without(name, value, best) for name, value in differences(paper, best).items()),
                variant("`paper`", split="validation"),
            ),
        ),
        "tried": _tried(best),
        "search": _search(paper),
    }


def _timesteps(paper: Settings) -> Section:
    figures = {5: "65.2", 20: "65.9", 100: "68.3"}
    own = f"the backbone's own is {paper.t_test}, learned at {paper.t_opt[0]} to {paper.t_opt[1]}"
    return Section(
        title="The timestep at test time",
        text=f"1-shot, preset `paper`, the same embeddings throughout; {own}.",
        paper="paper, 10-sample car, learned at 5 to 100",
        variants=tuple(
            variant(
                f"t_test {timestep}",
                at_test={} if timestep == paper.t_test else {"t_test": timestep},
                paper=figures.get(timestep, ""),
            )
            for timestep in sorted({*TIMESTEPS, paper.t_test})
        ),
    )


def _tried(best: Settings) -> Section:
    """Changes of time start from what the backbone's own settings say of it."""
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
    return Section(
        title="What else was tried",
        text="1-shot, one seed, on validation images: `best` with one thing changed. None of it is in `best`.",
        seeds=1,
        variants=(
            variant("`best`", "best", split="validation"),
            *(variant(label, "best", at_test=values, split="validation") for label, values in at_test.items()),
            *(variant(label, "best", values, split="validation") for label, values in learned.items()),
        ),
    )


def _search(paper: Settings) -> Section:
    """The preset's own row shows what `slime.json` of the backbone has taken from this."""
    rates = [rate for rate in (0.01, 0.03, 0.1, 0.3) if rate != paper.learning_rate]
    changes: dict[str, dict[str, Any]] = {
        **{f"learning rate {rate}": {"learning_rate": rate} for rate in rates},
        "twice the steps": {"steps": 2 * paper.total_steps(1)},
    }
    return Section(
        title="The learning rate and the steps of `paper`",
        text="1-shot, one seed, on validation images: `paper` was given the same search, for a fair comparison.",
        seeds=1,
        variants=(
            variant(f"`paper`: {paper.learning_rate}, {paper.total_steps(1)} steps", split="validation"),
            *(variant(label, changes=values, split="validation") for label, values in changes.items()),
        ),
    )


def differences(these: Settings, those: Settings) -> dict[str, Any]:
    """Return the settings of `these` that those differ in, as JSON-like values."""
    other = those.as_json()
    return {name: value for name, value in these.as_json().items() if value != other[name]}


def _without(name: str, value: Any, best: Settings) -> Variant:
    shown = "the paper's" if name == "layers" else value
    label = f"{name} {shown} instead of {'its own' if name == 'layers' else best.as_json()[name]}"
    change = {name: value}
    if name in AT_TEST:
        return variant(label, "best", at_test=change, split="validation")
    return variant(label, "best", change, split="validation")
