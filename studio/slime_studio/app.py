"""The studio over HTTP: which address does what. What it does, studio.py knows; who may ask, security.py."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from importlib.resources import files as package_files
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from slime_image import MAX_BYTES
from slime_studio.errors import StudioError, disk_error
from slime_studio.files import Mask
from slime_studio.pictures import take
from slime_studio.requests import body, flag, json_body, number, save_body, tab, text
from slime_studio.security import Guard
from slime_studio.studio import Studio

_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_FORMS = {"palette": "image/png", "coco": "application/json", "geojson": "application/geo+json"}
_CLIP_BYTES = 4_000_000_000
Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(
    studio: Studio,
    token: str,
    port: int,
    hosts: frozenset[str] | None,
    apart: str | None = None,
    others: Sequence[Route] = (),
) -> Starlette:
    """Return the application; `hosts`: the Host headers that it answers, None for any.

    `others` are routes below the path `apart`, which see for themselves who may ask.
    """
    page = {each.name: each.read_bytes() for each in (package_files("slime_studio") / "page").iterdir()}
    project = studio.project

    async def index(request: Request) -> Response:
        return Response(page["index.html"], media_type="text/html")

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in page:
            raise StudioError(f"page: has no file {name[:80]!r}", 404)
        return Response(page[name], media_type=_TYPES.get(name.rpartition(".")[2], "application/octet-stream"))

    async def events(request: Request) -> Response:
        return studio.events.stream()

    async def state(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(studio.state))

    async def add_part(request: Request) -> Response:
        part = await run_in_threadpool(project.add_part, text(await json_body(request), "name") or "")
        studio.events.tell("state")
        return JSONResponse(asdict(part))

    async def change_part(request: Request) -> Response:
        value, facts = request.path_params["value"], await json_body(request)
        await run_in_threadpool(project.change_part, value, text(facts, "name"), text(facts, "colour"))
        studio.events.tell("state")
        return JSONResponse({})

    async def remove_part(request: Request) -> Response:
        await run_in_threadpool(project.remove_part, request.path_params["value"])
        studio.events.tell("state")
        return JSONResponse({})

    async def add_image(request: Request) -> Response:
        name = request.query_params.get("name", "image")
        data = await body(request, MAX_BYTES, name)
        made = await run_in_threadpool(lambda: project.add_image(take(data, name), name))
        studio.events.tell("state")
        return JSONResponse({"id": made})

    async def image(request: Request) -> Response:
        path = await run_in_threadpool(project.image_path, request.path_params["image"])
        return FileResponse(path)

    async def small_image(request: Request) -> Response:
        name = request.path_params["image"]
        project.image(name)
        return FileResponse(project.folder / "small" / f"{name}.jpg")

    async def change_image(request: Request) -> Response:
        name, facts = request.path_params["image"], await json_body(request)
        await run_in_threadpool(project.set_example, name, flag(facts, "example"))
        studio.events.tell("state")
        return JSONResponse({})

    async def remove_image(request: Request) -> Response:
        await run_in_threadpool(project.remove_image, request.path_params["image"])
        studio.events.tell("state")
        return JSONResponse({})

    async def mask(request: Request) -> Response:
        name = request.path_params["image"]
        return _mask(await run_in_threadpool(project.mask, name), project.revision(name))

    async def patch(request: Request) -> Response:
        name = request.path_params["image"]
        facts, query = project.image(name), request.query_params
        left, top, width, height = (number(query.get(each), each) for each in ("x", "y", "w", "h"))
        data = await body(request, facts["width"] * facts["height"], "patch")
        edit = number(query.get("number", 0), "number")
        revision = await run_in_threadpool(
            lambda: project.patch(name, left, top, width, height, data, tab=tab(request), number=edit)
        )
        studio.events.tell("mask", image=name, revision=revision, tab=tab(request))
        return JSONResponse({"revision": revision})

    async def open_mask(request: Request) -> Response:
        image, name = request.path_params["image"], request.query_params.get("name", "mask.png")
        data = await body(request, MAX_BYTES, name)
        return _mask(await run_in_threadpool(studio.opening.open_mask, image, name, data), "")

    async def take_file(request: Request) -> Response:
        path = request.query_params.get("path", "")
        data = await body(request, MAX_BYTES, path)
        await run_in_threadpool(studio.opening.take_file, request.path_params["batch"], path, data)
        return JSONResponse({})

    async def read_annotations(request: Request) -> Response:
        found = await run_in_threadpool(studio.opening.read_annotations, request.path_params["batch"])
        studio.events.tell("state")
        return JSONResponse(found)

    async def learn(request: Request) -> Response:
        facts = await json_body(request)
        steps = None if facts.get("steps") is None else number(facts["steps"], "steps")
        seed = number(facts.get("seed", 0), "seed")
        return JSONResponse({"job": await run_in_threadpool(studio.learn, steps, text(facts, "begin"), seed)})

    async def look(request: Request) -> Response:
        return JSONResponse({"job": await run_in_threadpool(studio.look, request.path_params["segmenter"])})

    async def look_picture(request: Request) -> Response:
        segmenter, image = request.path_params["segmenter"], request.path_params["image"]
        return FileResponse(await run_in_threadpool(studio.look_picture, segmenter, image))

    async def look_mask(request: Request) -> Response:
        segmenter, image = request.path_params["segmenter"], request.path_params["image"]
        return _mask(await run_in_threadpool(studio.look_mask, segmenter, image), "")

    async def job_file(request: Request) -> Response:
        job, name = request.path_params["number"], request.path_params["name"]
        told = await run_in_threadpool(studio.jobs.one, job)
        progress = told["progress"]
        allowed = {"log.txt", progress.get("film"), *(each["file"] for each in progress.get("pictures", []))}
        path = studio.jobs.folder(job) / name
        if name not in allowed or not path.exists():
            raise StudioError(f"job {job}: has no file {name[:80]!r}", 404)
        return FileResponse(path)

    async def cancel(request: Request) -> Response:
        await run_in_threadpool(studio.jobs.cancel, request.path_params["number"])
        return JSONResponse({})

    async def resume(request: Request) -> Response:
        await run_in_threadpool(studio.jobs.resume, request.path_params["number"])
        return JSONResponse({})

    async def published(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(studio.published))

    async def publish(request: Request) -> Response:
        facts = await json_body(request)
        segmenter, name = text(facts, "segmenter") or "", text(facts, "name") or ""
        force = flag(facts, "force")
        job = await run_in_threadpool(studio.publish, segmenter, name, text(facts, "url"), force)
        return JSONResponse({"job": job})

    async def roll_back(request: Request) -> Response:
        facts = await json_body(request)
        version = number(facts.get("version"), "version")
        job = await run_in_threadpool(studio.roll_back, text(facts, "name") or "", version, text(facts, "url"))
        return JSONResponse({"job": job})

    async def server(request: Request) -> Response:
        wanted = request.path_params["wanted"]
        if wanted not in ("start", "stop"):
            raise StudioError(f"server: got {wanted[:40]!r}, expected start or stop", 404)
        await run_in_threadpool(studio.serving.start if wanted == "start" else studio.serving.stop)
        studio.events.tell("server")
        return JSONResponse(await run_in_threadpool(studio.serving.state))

    async def server_state(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(studio.serving.state))

    async def segment(request: Request) -> Response:
        query = request.query_params
        if known := query.get("image"):
            path = await run_in_threadpool(project.image_path, known)
            data, label = await run_in_threadpool(path.read_bytes), project.image(known)["name"]
        else:
            label = query.get("name", "image")
            data = await body(request, MAX_BYTES, label)
        url, name = query.get("url") or None, query.get("segmenter", "")
        return JSONResponse(await run_in_threadpool(studio.segment, url, name, data, label))

    async def clip(request: Request) -> Response:
        query = request.query_params
        label = query.get("name", "clip")
        suffix = "".join(letter for letter in Path(label).suffix[:8] if letter.isalnum() and letter.isascii())
        received = project.folder / f".received-{uuid.uuid4().hex}.{suffix}"
        try:
            await save_body(request, received, _CLIP_BYTES, label)
            url, name = query.get("url") or None, query.get("segmenter", "")
            job = await run_in_threadpool(studio.clip, url, name, label, received)
        finally:
            received.unlink(missing_ok=True)
        return JSONResponse({"job": job})

    async def result_picture(request: Request) -> Response:
        return FileResponse(await run_in_threadpool(studio.result_picture, request.path_params["result"]))

    async def download(request: Request) -> Response:
        form = request.path_params["form"]
        data, name = await run_in_threadpool(studio.download, request.path_params["result"], form)
        quoted = json.dumps(name, ensure_ascii=True).replace("\\", "_")
        headers = {"Content-Disposition": f"attachment; filename={quoted}"}
        return Response(data, media_type=_FORMS.get(form, "application/octet-stream"), headers=headers)

    get: dict[str, Endpoint] = {
        "/": index,
        "/static/{name}": static,
        "/api/events": events,
        "/api/state": state,
        "/api/images/{image}": image,
        "/api/images/{image}/small": small_image,
        "/api/images/{image}/mask": mask,
        "/api/looks/{segmenter}/{image}": look_picture,
        "/api/looks/{segmenter}/{image}/mask": look_mask,
        "/api/jobs/{number:int}/{name}": job_file,
        "/api/published": published,
        "/api/server": server_state,
        "/api/results/{result}": result_picture,
        "/api/results/{result}/{form}": download,
    }
    post: dict[str, Endpoint] = {
        "/api/parts": add_part,
        "/api/parts/{value:int}": change_part,
        "/api/parts/{value:int}/remove": remove_part,
        "/api/images": add_image,
        "/api/images/{image}": change_image,
        "/api/images/{image}/remove": remove_image,
        "/api/images/{image}/patch": patch,
        "/api/images/{image}/open-mask": open_mask,
        "/api/opened/{batch}": take_file,
        "/api/opened/{batch}/read": read_annotations,
        "/api/learn": learn,
        "/api/looks/{segmenter}": look,
        "/api/jobs/{number:int}/cancel": cancel,
        "/api/jobs/{number:int}/resume": resume,
        "/api/publish": publish,
        "/api/rollback": roll_back,
        "/api/server/{wanted}": server,
        "/api/segment": segment,
        "/api/clips": clip,
    }
    routes = [Route(path, _answered(endpoint), methods=["GET"]) for path, endpoint in get.items()]
    routes += [Route(path, _answered(endpoint), methods=["POST"]) for path, endpoint in post.items()]
    guard = Middleware(Guard, token=token, port=port, hosts=hosts, apart=apart)
    return Starlette(routes=[*routes, *others], middleware=[guard])


def _answered(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with its errors as JSON of one line."""

    @functools.wraps(endpoint)
    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except StudioError as error:
            return JSONResponse({"error": str(error)}, error.status)
        except ClientDisconnect:
            return Response(status_code=499)
        except OSError as error:
            told = disk_error(error, "project")
            return JSONResponse({"error": str(told)}, told.status)

    return answered


def _mask(mask_HW: Mask, revision: str) -> Response:
    """Answer with a mask's values, row by row."""
    height, width = mask_HW.shape
    headers = {"X-Width": str(width), "X-Height": str(height), "X-Revision": revision}
    return Response(mask_HW.tobytes(), media_type="application/octet-stream", headers=headers)
