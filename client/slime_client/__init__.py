"""Ask a served SLiMe segmenter for masks over gRPC.

    from slime_client import Segmenter

    with Segmenter("localhost:8001", "car") as segmenter:
        mask = segmenter.segment("photo.jpg")
        mask.save("photo.png")

`slime_client.aio.Segmenter` is the same for asyncio. Needs numpy, Pillow and tritonclient[grpc] only; knows nothing of
torch or of how a segmenter was made.
"""

try:
    import PIL  # noqa: F401
    import tritonclient.grpc  # noqa: F401
except (ModuleNotFoundError, RuntimeError) as error:  # RuntimeError: tritonclient was installed without its gRPC part
    raise ModuleNotFoundError(
        f"slime_client needs Pillow and tritonclient[grpc] ({error}); run: pip install 'slime-serve[client]'",
        name=getattr(error, "name", None) or "tritonclient.grpc",
    ) from error

from slime_client.access import Access
from slime_client.blocking import Segmenter, segmenters
from slime_client.core import Answer
from slime_client.errors import SegmenterError
from slime_client.lookup import Description
from slime_client.mask import Mask
from slime_client.protocol import Retry
from slime_client.video.frames import Frame

__all__ = ["Access", "Answer", "Description", "Frame", "Mask", "Retry", "Segmenter", "SegmenterError", "segmenters"]
