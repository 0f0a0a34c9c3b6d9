"""Label Studio's ML backend protocol over HTTP: which address does what, and who may ask.

    GET  ADDRESS/health                      -> {"status": "UP", "model_class": NAME}
    POST ADDRESS/setup    {project, schema}  -> {"model_version": VERSION}
    POST ADDRESS/predict  {project, label_config, tasks}
                                             -> {"results": [PREDICTION or [], ...], "model_version": VERSION}
    POST ADDRESS/webhook  {action, project}  -> 201
    GET  ADDRESS/state                       -> what there is to know without the studio's page

ADDRESS ends in a secret: Label Studio sends its webhooks without a password. The same works without the secret in the
address for requests that have it as the password of basic authentication, under any name. Label Studio is no page, so
neither the page's token nor its Origin is expected here; what a browser sends is refused.
"""

from __future__ import annotations

import base64
import hmac
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slime_studio.errors import StudioError
from slime_studio.label_studio.backend import Backend
from slime_studio.requests import body, json_object, number

PREFIX = "/label-studio"
_BYTES = 256_000_000  # tasks come with their annotations and predictions
_ANEW = "START_TRAINING"
_LEARNED = (_ANEW, "ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED")
Answer = Callable[[dict[str, Any]], dict[str, Any]]


def routes(backend: Backend, secret: str) -> list[Route]:
    """Return the protocol's routes, with the secret in the address and without."""

    def health(facts: dict[str, Any]) -> dict[str, Any]:
        return {"status": "UP", "model_class": "SLiMe"}

    def setup(facts: dict[str, Any]) -> dict[str, Any]:
        extra = facts.get("extra_params") or {}
        extra = json_object(extra.encode()) if isinstance(extra, str) else extra
        if not isinstance(extra, dict):
            raise StudioError(f"extra params: got {str(extra)[:40]}, expected a JSON object")
        steps = number(extra["steps"], "extra params: steps") if "steps" in extra else None
        return {"model_version": backend.set_up(facts.get("project"), str(facts.get("schema") or ""), steps)}

    def predict(facts: dict[str, Any]) -> dict[str, Any]:
        tasks = facts.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise StudioError("tasks: got none, expected a list of them")
        found = backend.predict(facts.get("project"), str(facts.get("label_config") or ""), tasks)
        # Label Studio keeps no prediction of an empty list, and asks again; the annotator who waits gets an empty one.
        asked = (facts.get("params") or {}).get("context") is not None
        nothing = {"result": [], "score": 0.0, "model_version": backend.version()} if asked else []
        return {"results": [each or nothing for each in found], "model_version": backend.version()}

    def webhook(facts: dict[str, Any]) -> dict[str, Any]:
        project = facts.get("project")
        if facts.get("action") in _LEARNED and isinstance(project, dict):
            backend.ask(project.get("id"), anew=facts["action"] == _ANEW)
        return {}

    def state(facts: dict[str, Any]) -> dict[str, Any]:
        return backend.state()

    every: list[tuple[str, str, Answer, int]] = [
        ("GET", "health", health, 200),
        ("GET", "state", state, 200),
        ("POST", "setup", setup, 200),
        ("POST", "predict", predict, 200),
        ("POST", "webhook", webhook, 201),
    ]
    return [
        Route(f"{PREFIX}{place}/{name}", _endpoint(answer, secret, status), methods=[method])
        for method, name, answer, status in every
        for place in ("", "/{secret}")
    ]


def _endpoint(answer: Answer, secret: str, status: int) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if "origin" in request.headers:
            return JSONResponse({"error": "origin: a browser asks, expected Label Studio"}, 403)
        given = request.path_params.get("secret") or _password(request.headers.get("authorization", ""))
        if not hmac.compare_digest(given.encode(), secret.encode()):
            line = "address: is not the one that slime studio printed for Label Studio"
            return JSONResponse({"error": line}, 401, {"WWW-Authenticate": 'Basic realm="slime studio"'})
        try:
            data = await body(request, _BYTES, "request")
            return JSONResponse(await run_in_threadpool(lambda: answer(json_object(data))), status)
        except StudioError as error:  # Label Studio shows the status alone
            print(f"label studio: {error}", file=sys.stderr, flush=True)
            return JSONResponse({"error": str(error)}, error.status)

    return endpoint


def _password(header: str) -> str:
    """Return the password of basic authentication; nothing where there is none."""
    kind, _, coded = header.partition(" ")
    try:
        return base64.b64decode(coded).decode().partition(":")[2] if kind.lower() == "basic" else ""
    except ValueError:
        return ""
