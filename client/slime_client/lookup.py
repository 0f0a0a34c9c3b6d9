"""Finding segmenters on a server, whichever form they have: baked into a model of their name, or in the registry.

Baked: an ensemble NAME whose configuration's parameters name its parts. Shared: the model `segmenters` describes NAME
and tells which model to ask for it. Knows no images.
"""

from slime_client import names, protocol
from slime_client.description import Description, from_parameters, from_registry, names_from_registry
from slime_client.errors import NOT_FOUND, SegmenterError
from slime_client.retry import Deadline
from slime_client.server import Server
from slime_client.steps import Steps

# Looking for other segmenters only improves a message: it may cost this much and no more.
_LOOK_AROUND_S = 2.0
_LOOK_AROUND_NAMES = 64


def find(server: Server, name: str, deadline: Deadline) -> Steps[Description]:
    """The description of the latest version of a segmenter.

    Raises:
        SegmenterError: NOT_FOUND when no form of it is served, naming those that are; or what else went wrong.
    """
    try:
        return (yield from baked(server, name, "", deadline))
    except SegmenterError as error:
        if error.code != NOT_FOUND:
            raise
        missing = error
    try:
        return (yield from shared(server, name, deadline))
    except SegmenterError as error:
        if error.code != NOT_FOUND:
            raise
    hint = yield from _others(server)
    raise SegmenterError(f"{missing}; {hint}", NOT_FOUND) from missing


def baked(server: Server, name: str, version: str, deadline: Deadline) -> Steps[Description]:
    """The description of one version of a baked-in segmenter; "" is the latest."""
    request = protocol.configuration(name, version)
    answer = yield from server.ask("ModelConfig", request, deadline, segmenter=name, subject="its configuration")
    return from_parameters(protocol.parameters(answer), url=server.url, segmenter=name)


def shared(server: Server, name: str, deadline: Deadline) -> Steps[Description]:
    """The description of a segmenter in shared form."""
    said = yield from _registry(server, name, deadline)
    return from_registry(said, url=server.url, segmenter=name)


def every(server: Server, deadline: Deadline) -> Steps[list[Description]]:
    """All segmenters of either form that can be asked, by name.

    Raises:
        SegmenterError: UNAUTHENTICATED when the server shows its models only to who has a key.
    """
    found, registered = yield from _served(server, deadline)
    for name in registered:
        found += yield from _unless_gone(shared(server, name, deadline))
    return sorted(found, key=lambda description: description.name)


def _served(server: Server, deadline: Deadline) -> Steps[tuple[list[Description], list[str]]]:
    """The baked-in segmenters, and the names of those in shared form."""
    request = protocol.index()
    index = yield from server.ask("RepositoryIndex", request, deadline, segmenter="*", subject="the list of models")
    ready = {model.name for model in index.models if model.state == "READY"}
    found: list[Description] = []
    for name in sorted(ready):
        # Most models are no segmenters.
        found += yield from _unless_gone(baked(server, name, "", deadline))
    if names.SEGMENTERS not in ready:
        return found, []
    said = yield from _registry(server, "", deadline)
    return found, names_from_registry(said, url=server.url)


def _unless_gone(steps: Steps[Description]) -> Steps[list[Description]]:
    try:
        return [(yield from steps)]
    except SegmenterError as error:
        if error.code != NOT_FOUND:
            raise
        return []


def _registry(server: Server, name: str, deadline: Deadline) -> Steps[str]:
    request = protocol.infer(names.SEGMENTERS, {names.SEGMENTER: name.encode()}, [names.DESCRIPTION])
    answer = yield from server.ask("ModelInfer", request, deadline, segmenter=name, subject="its description")
    return protocol.text(answer, names.DESCRIPTION)


def _others(server: Server) -> Steps[str]:
    try:
        found, registered = yield from _served(server, Deadline(_LOOK_AROUND_S))
    except SegmenterError:
        # The index may be closed to clients; the message does without.
        return "check the name"
    shown = sorted({description.name for description in found} | set(registered))[:_LOOK_AROUND_NAMES]
    return f"it serves: {', '.join(shown)}" if shown else "it serves no segmenter"
