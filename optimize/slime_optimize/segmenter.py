"""A segmenter on disk: learned text embeddings, and what is needed to use them again.

    DIR/segmenter.safetensors   embeddings (K-1,D), text_embedding (1,77,D), noise (noise_samples,4,h,w), float32
    DIR/segmenter.json          part names, colours, backbone, settings, seed, metrics, versions

Only this module reads and writes these files. No pickle.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from slime_optimize.backbone import TinyName
from slime_optimize.errors import InputError, first_line
from slime_optimize.files import whole, write_text
from slime_optimize.method.seeds import sampled_noise
from slime_optimize.old_names import in_current_words
from slime_optimize.settings import Settings

FORMAT = 1
WEIGHTS_FILE = "segmenter.safetensors"
JSON_FILE = "segmenter.json"


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """Embeddings of parts 1..K-1 for one backbone; part 0 is the background, which is not learned.

    text_embedding (1,77,D) float32 includes the learned rows; noise (noise_samples,4,h,w) float32 is added to every
    image's latents. parts: K names; colours: K of (r, g, b) in 0..255.
    """

    text_embedding: Tensor
    noise: Tensor
    parts: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    backbone_id: str
    backbone_hash: str
    image_size: int
    latent_size: int
    settings: Settings
    preset: str
    seed: int
    preset_from: str = ""  # in words, where the preset came from; nothing in segmenters made before that was kept
    begun_from: Mapping[str, str] | None = None  # folder and hash of the segmenter whose embeddings it started from
    tiny: TinyName | None = None  # with settings.encoder "tiny": the encoder that it was made with
    training_images: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""

    def __post_init__(self) -> None:
        _check(len(self.colours) == len(self.parts), "colours", len(self.colours), f"{len(self.parts)}, one a part")
        shape = tuple(self.text_embedding.shape)
        _check(len(shape) == 3 and shape[:2] == (1, 77), "text_embedding", shape, "(1, 77, D)")
        noise, expected = tuple(self.noise.shape), (self.settings.noise_samples, 4, self.latent_size, self.latent_size)
        _check(noise == expected, "noise", noise, str(expected))
        encoder = self.settings.encoder
        _check((encoder == "tiny") == bool(self.tiny), "tiny_encoder", self.tiny, f"one for encoder {encoder}")

    @property
    def embeddings(self) -> Tensor:
        """Learned rows, (K-1,D) float32."""
        return self.text_embedding[0, 1 : len(self.parts)]

    @property
    def tiny_id(self) -> str | None:
        """Folder or hub id of its tiny encoder; None in the backbone's folder, and without one."""
        return self.tiny.id if self.tiny else None

    @property
    def tiny_hash(self) -> str | None:
        """Hash of its tiny encoder's content; None without one."""
        return self.tiny.hash if self.tiny else None

    def with_embeddings(self, learned_KD: Tensor) -> Segmenter:
        """Return a copy with (K-1,D) embeddings in the rows of parts 1..K-1."""
        rows = learned_KD.detach().to(self.text_embedding)
        return replace(self, text_embedding=in_place(self.text_embedding, rows))

    def at_test_time(self, changes: Sequence[str]) -> Segmenter:
        """Return a copy with test-time settings changed, each of `changes` "NAME=VALUE" as after --set.

        Noise for more samples is drawn again from the segmenter's seed. Raises InputError, in one line, for settings
        that take part in learning, for values that do not fit, and where the seed no longer gives the stored noise.
        """
        settings = self.settings.at_test_time(changes)
        noise, wanted = self.noise, settings.noise_samples
        if wanted > len(noise):
            again = sampled_noise(self.latent_size, self.seed, wanted)
            if not torch.equal(again[: len(noise)], noise.to(again)):
                raise InputError(
                    f"--set noise_samples={wanted}: the noise of seed {self.seed} is not what this segmenter was made "
                    f"with, so that no more of it can be drawn; expected 1 to {len(noise)}"
                )
            noise = again.to(noise)
        return replace(self, settings=settings, noise=noise[:wanted])

    @property
    def hash(self) -> str:
        """Sha256 of everything that decides the masks, for parameters of the served model."""
        digest = hashlib.sha256(self.backbone_hash.encode())
        if self.tiny:
            digest.update(self.tiny.hash.encode())
        for tensor in (self.text_embedding, self.noise):
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        decisive = {"parts": self.parts, "settings": self.settings.as_json()}
        digest.update(json.dumps(decisive, sort_keys=True).encode())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write both files into `folder`, which is made if necessary, each whole or not at all."""
        tensors = {"embeddings": self.embeddings, "text_embedding": self.text_embedding, "noise": self.noise}
        plain = {name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in tensors.items()}
        with whole(folder / WEIGHTS_FILE) as waiting:
            waiting.write_bytes(save(plain))  # not save_file, which leaves a file for its owner alone
        write_text(folder / JSON_FILE, json.dumps(self._as_json(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Segmenter:
        """Load what `save` wrote, under earlier names of settings too. Raises InputError, in one line."""
        facts = _read_facts(folder)
        try:
            tensors = load_file(str(folder / WEIGHTS_FILE))
            return cls(
                text_embedding=tensors["text_embedding"],
                noise=tensors["noise"],
                parts=tuple(facts["parts"]),
                colours=tuple((int(r), int(g), int(b)) for r, g, b in facts["colours"]),
                backbone_id=facts["backbone"]["id"],
                backbone_hash=facts["backbone"]["hash"],
                tiny=TinyName(**facts["tiny_encoder"]) if facts.get("tiny_encoder") else None,
                settings=Settings().changed(in_current_words(facts["settings"]), source=str(folder / JSON_FILE)),
                training_images=tuple(facts["training_images"]),
                preset_from=facts.get("preset_from", ""),
                begun_from=facts.get("begun_from"),
                **{name: facts[name] for name in _PLAIN},
            )
        except InputError:
            raise
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"segmenter {folder}: damaged ({first_line(error)}); make it again") from error

    def _as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "parts": list(self.parts),
            "colours": [list(colour) for colour in self.colours],
            "backbone": {"id": self.backbone_id, "hash": self.backbone_hash},
            "tiny_encoder": asdict(self.tiny) if self.tiny else None,
            "settings": self.settings.as_json(),
            "training_images": list(self.training_images),
            "preset_from": self.preset_from,
            "begun_from": dict(self.begun_from) if self.begun_from else None,
            **{name: getattr(self, name) for name in _PLAIN},
        }


_PLAIN = ("image_size", "latent_size", "preset", "seed", "metrics", "versions", "created")


def in_place(text_1TD: Tensor, learned_KD: Tensor) -> Tensor:
    """Return the text embedding with (K-1,D) rows in place of those after the first; differentiable in both."""
    after = 1 + learned_KD.shape[0]
    return torch.cat([text_1TD[:, :1], learned_KD[None], text_1TD[:, after:]], dim=1)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide the embeddings."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "diffusers", "transformers")} | {"cuda": str(torch.version.cuda)}


def now_in_utc() -> str:
    """Return the time, as `Segmenter.created` has it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / JSON_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"segmenter {folder}: has no {JSON_FILE}; expected a folder written by optimize/run.py"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"segmenter {path}: not readable JSON ({first_line(error)}); make it again") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        got = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
        raise InputError(f"segmenter {path}: got format {got}, expected {FORMAT}; make it again")
    return facts


def _check(holds: bool, name: str, got: object, expected: str) -> None:
    if not holds:
        raise InputError(f"segmenter {name}: got {got}, expected {expected}")
