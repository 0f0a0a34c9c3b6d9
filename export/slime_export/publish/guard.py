"""Whether a new version of a segmenter may take the place of the one that serves.

With annotated images it is held to a mean IoU, or to what the live one has on the same images. Without, it must have
found its parts on its own training images. Nothing here publishes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from slime_client import Segmenter as Client
from slime_export.errors import ExportError, QualityError
from slime_export.options import ExportOptions
from slime_export.proof.parity import mean_iou
from slime_export.publish.live import LiveSegmenter, live_version
from slime_export.publish.lock import Say
from slime_optimize.evaluation import Data
from slime_optimize.segmenter import Segmenter
from slime_optimize.verdict import LOWEST_IOU, lost_parts, told
from slime_repository.record import Mask

_TOLERANCE = 0.1  # points of mean IoU that two exports of the same embeddings may differ by


def require_learned(options: ExportOptions, segmenter: Segmenter, say: Say) -> None:
    """Raise QualityError for a segmenter that lost parts of its own training images, where another one serves.

    It is a warning where none serves, with --force, and where images are to decide.
    """
    lost, name = lost_parts(segmenter.metrics), options.served_name
    if not lost:
        return
    what = f"segmenter {name}: fails on its own training data ({told(lost)} IoU, under {LOWEST_IOU:g} %)"
    live = live_version(options.repository, name)
    if live is None or options.force or options.at_least is not None or options.not_worse:
        say(f"warning: {what}")
        return
    raise QualityError(
        f"{what}, so it was not published and version {live} serves on; learn it again as its report.html says, "
        "compare the two with --not-worse --data FOLDER, or give --force"
    )


def require_good(options: ExportOptions, new: float, data: Data, say: Say) -> None:
    """Raise QualityError where the mean IoU `new` of the exported models on `data`, in percent, is too low.

    Raises ExportError where the live segmenter has other parts, RepositoryError or SegmenterError where it cannot run.
    """
    name, images = options.served_name, f"{len(data)} images of {options.data}"
    if options.at_least is not None and not new >= options.at_least:
        raise QualityError(
            f"segmenter {name}: has mean IoU {new:.1f} % on {images}, expected {options.at_least:g} or more "
            "(--at-least); nothing was published"
        )
    live = live_version(options.repository, name)
    if not options.not_worse or live is None:
        return
    with _served(options) as before:
        if before.parts != data.parts:
            raise ExportError(
                f"--not-worse: the live {name} has the parts {', '.join(before.parts)}, the new one "
                f"{', '.join(data.parts)}; they cannot be compared, give --at-least IOU instead"
            )
        old = mean_iou(before, data)
    say(f"mean IoU on {images}: {old:.1f} % of version {live}, which serves, {new:.1f} % of the new one")
    if not new >= old - _TOLERANCE:
        raise QualityError(
            f"segmenter {name}: is worse than version {live}, which serves on ({new:.1f} % mean IoU on {images}, "
            f"expected {old:.1f} %; --not-worse); nothing was published"
        )


@contextmanager
def _served(options: ExportOptions) -> Iterator[LiveSegmenter | _Asked]:
    """Give the live segmenter: over the server that --url names, else in ONNX Runtime, from the repository."""
    if options.url is None:
        yield LiveSegmenter(options.repository, options.served_name)
        return
    with Client(options.url, options.served_name, access=options.access) as client:
        yield _Asked(client)


class _Asked:
    """A segmenter on a running server, as something to be measured."""

    batch_size = 1

    def __init__(self, client: Client) -> None:
        self._client, self.parts = client, client.parts

    def masks(self, images_HW3: Sequence[Mask], *, use_was: bool = True) -> list[Mask]:
        assert use_was, "a served segmenter always uses WAS maps"
        return [self._client.segment(image).array for image in images_HW3]
