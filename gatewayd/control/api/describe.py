"""What the admin address offers, for programs and for people: `/openapi.json` and `/docs`.

Owns: the description, made of the routes and of the bodies' shapes. Does not own: either of them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel

import gatewayd
from gatewayd.control.api.replies import reply

_METHODS: Final = ("GET", "POST", "DELETE")
_REF: Final = "#/components/schemas/{model}"
_FAULT: Final = {
    "type": "object",
    "properties": {"detail": {"type": ["string", "array"]}},
    "required": ["detail"],
}


class Describe:
    """`bodies` by path: what a call takes. The rest is read from the routes."""

    def __init__(self, bodies: Mapping[str, type[BaseModel]]) -> None:
        self._bodies = bodies
        self._document: dict[str, Any] | None = None

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/openapi.json", self.openapi)
        app.router.add_get("/docs", self.docs)

    async def openapi(self, request: web.Request) -> web.Response:
        """This description, as OpenAPI 3.1."""
        return reply(self._described(request.app))

    async def docs(self, request: web.Request) -> web.Response:
        """The same for people."""
        document = self._described(request.app)
        rows = "".join(
            f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td>"
            f"<td>{html.escape(call['summary'])}</td></tr>"
            for path, calls in document["paths"].items()
            for method, call in calls.items()
        )
        text = (
            f"<!doctype html><title>gatewayd</title><h1>gatewayd {gatewayd.__version__}</h1>"
            f"<table>{rows}</table><p><a href='openapi.json'>openapi.json</a>"
        )
        return web.Response(text=text, content_type="text/html")

    def _described(self, app: web.Application) -> dict[str, Any]:
        if self._document is None:
            self._document = {
                "openapi": "3.1.0",
                "info": {"title": "gatewayd", "version": gatewayd.__version__},
                "paths": self._paths(app),
                "components": {"schemas": self._schemas()},
            }
        return self._document

    def _paths(self, app: web.Application) -> dict[str, dict[str, Any]]:
        paths: dict[str, dict[str, Any]] = {}
        for path, route in _routes(app):
            call: dict[str, Any] = {
                "summary": _summary(route.handler),
                "operationId": getattr(route.handler, "__name__", path),
                "parameters": [
                    {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                    for name in re.findall(r"{(\w+)}", path)
                ],
                "responses": {
                    "200": {"description": "done"},
                    "400": {
                        "description": "refused",
                        "content": {"application/json": {"schema": _FAULT}},
                    },
                },
            }
            body = self._bodies.get(path)
            if body is not None and route.method == "POST":
                schema = {"$ref": _REF.format(model=body.__name__)}
                call["requestBody"] = {"content": {"application/json": {"schema": schema}}}
            paths.setdefault(path, {})[route.method.lower()] = call
        return paths

    def _schemas(self) -> dict[str, Any]:
        schemas: dict[str, Any] = {}
        for model in self._bodies.values():
            schema = model.model_json_schema(ref_template=_REF)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        return schemas


def _routes(app: web.Application) -> Iterator[tuple[str, web.AbstractRoute]]:
    for route in app.router.routes():
        if route.resource is not None and route.method in _METHODS:
            yield route.resource.canonical, route


def _summary(handler: object) -> str:
    said = (getattr(handler, "__doc__", None) or "").strip().partition("\n")[0]
    return said or str(getattr(handler, "__name__", "")).replace("_", " ")
