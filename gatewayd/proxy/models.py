"""The model endpoint: one host for all models of a project, each request one of its service's.

Owns: the way of such a request up to the service: token, path, the `model` of its body. Does not
own: what it asks for (core.model_calls), everything from the service on (admit, forward), services
that do not speak OpenAI's API (tgi).

The way is inside the worker, not a second request to ourselves: limits, replicas, router and
counts are the service's own, and the body's bytes go on as they came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gatewayd.core import reply as replies
from gatewayd.core.auth import Verdict, bearer_token, known_token
from gatewayd.core.entrypoint import TgiFormat
from gatewayd.core.headers import BadHead
from gatewayd.core.model import Cors, DstackAuth
from gatewayd.core.model_calls import (
    NO_MODEL,
    DescribeCall,
    ListCall,
    ModelName,
    Operation,
    forbidden,
    in_openai_shape,
    model_description,
    model_list,
    not_offered,
    read_call,
    unknown_model,
)
from gatewayd.core.reply import LocalReply
from gatewayd.core.snapshot import EntrypointTarget, ModelTarget
from gatewayd.proxy import admit
from gatewayd.proxy.holding import arrived
from gatewayd.proxy.payload import BegunBody
from gatewayd.proxy.served import Live, Served, cors_fields
from gatewayd.proxy.tgi import CALL_MAX, TgiForward, adapt
from gatewayd.proxy.waiting import Waiting

if TYPE_CHECKING:
    from gatewayd.proxy.exchange import Exchange
    from gatewayd.proxy.handler import Edge

_CORS: Final = Cors()
# Of bodies whose model is not known yet, in one worker: clients may send the model last.
HELD_MAX: Final = 512 * 1024 * 1024
_OVERLOADED: Final = LocalReply(
    503, "overloaded", "Too many requests wait to be read", rejection="body_size", retry_after_s=1
)
# What is left to ask of a request when its service is known; tokens are judged apart.
_STEPS: Final = (admit.body_size, admit.path, admit.bucket, admit.rate_limit, admit.replica)


class RefusedError(Exception):
    """The request ends here, with this answer."""

    def __init__(self, reply: LocalReply) -> None:
        super().__init__(reply.message)
        self.reply = reply


class ModelEndpoint:
    """An entrypoint of one snapshot, its services made ready when they are first asked for."""

    def __init__(
        self, target: EntrypointTarget, live: Mapping[str, Live], *, forward_auth: bool
    ) -> None:
        self.project = target.project
        self.auth = target.auth
        self.https = target.https
        self.models = {model.name: model for model in target.models}
        # More than any of its services takes need not be read to know which.
        self.max_body_size = max(
            (model.target.service.client_max_body_size for model in target.models),
            default=1024 * 1024,
        )
        self._live = {model.name: live[model.target.service.key] for model in target.models}
        self._forward_auth = forward_auth
        self._served: dict[str, Served] = {}

    def __repr__(self) -> str:
        return f"<ModelEndpoint {self.project} [{len(self.models)} models]>"

    def served(self, model: ModelTarget) -> Served:
        """The service of a model as it is served here: to browsers of any origin, and not asking
        for the token again that was asked for at the door."""
        served = self._served.get(model.name)
        if served is None:
            target = model.target
            service = target.service
            if self.auth:
                target = replace(target, forward_auth=self._forward_auth)
            service = replace(
                service, cors=service.cors or _CORS, auth=service.auth and not self.auth
            )
            target = replace(target, service=service, openai_errors=True)
            served = self._served[model.name] = Served(target, self._live[model.name])
        return served

    def begin(self, edge: Edge, exchange: Exchange) -> None:
        if exchange.method == "OPTIONS":
            age = (b"Access-Control-Max-Age", b"%d" % _CORS.max_age)
            exchange.answer(LocalReply(204, headers=(*_cors_fields(), age)))
            return
        ModelCall(edge, exchange, self).start()


class ModelCall(Waiting):
    """A request on its way to a service."""

    def __init__(self, edge: Edge, exchange: Exchange, endpoint: ModelEndpoint) -> None:
        super().__init__(edge.plane, exchange)
        self._edge = edge
        self._endpoint = endpoint

    def start(self) -> None:
        self._wait(self._run())

    async def _run(self) -> None:
        try:
            await self._go_on()
        except RefusedError as error:
            self._answer(error.reply)
        except BadHead as error:
            self._answer(replies.bad_request(str(error)))

    async def _go_on(self) -> None:
        exchange, endpoint = self._exchange, self._endpoint
        if exchange.length > endpoint.max_body_size:
            raise RefusedError(replies.BODY_TOO_LARGE)
        if endpoint.auth:
            await self._judge(f"{endpoint.project}/*")
        call = read_call(exchange.method, exchange.target)
        if isinstance(call, LocalReply):
            raise RefusedError(call)
        if isinstance(call, ListCall):
            self._answer(model_list(endpoint.models.values(), endpoint.project))
        elif isinstance(call, DescribeCall):
            self._answer(model_description(self._model(call.model), endpoint.project))
        else:
            await self._serve(call)

    async def _serve(self, operation: Operation) -> None:
        exchange, endpoint = self._exchange, self._endpoint
        model = self._model(await self._read_model())
        served = endpoint.served(model)
        exchange.served = served
        exchange.host = served.service.domains[0]
        if isinstance(model.format, TgiFormat):
            if operation.name != "chat/completions":
                raise RefusedError(not_offered(model.name, operation.name))
            target = "/generate"
        else:
            target = f"{model.format.prefix.rstrip('/')}/{operation.name}{operation.query}"
        exchange.target = exchange.upstream_target = target
        for step in _STEPS:
            if refusal := step(self._edge, exchange, served):
                raise RefusedError(refusal)
        if served.service.auth:
            await self._judge(served.key)
            if served.unready is not None:
                raise RefusedError(served.unready)
        if served.coming:
            found = await arrived(self._edge, served)
            if found is None:
                raise RefusedError(replies.NO_REPLICA)
            exchange.served = served = found
        if isinstance(model.format, TgiFormat):
            await self._translate(model.format, served)
        else:
            self._edge.forward(exchange, served)

    async def _translate(self, form: TgiFormat, served: Served) -> None:
        edge, exchange = self._edge, self._exchange
        pieces = await self._read_until(lambda _: False, min(served.max_body_size, CALL_MAX))
        call = await adapt(exchange, b"".join(pieces), form, edge.prompts)
        if isinstance(call, LocalReply):
            raise RefusedError(call)
        edge.demanded(exchange, served)
        TgiForward(edge.plane, exchange, served, call, form).start()

    def _model(self, name: str) -> ModelTarget:
        model = self._endpoint.models.get(name)
        if model is None:
            raise RefusedError(unknown_model(name, self._endpoint.project))
        return model

    # --- the token

    async def _judge(self, key: str) -> None:
        """`key` is what the verdict is remembered under."""
        edge, exchange, project = self._edge, self._exchange, self._endpoint.project
        authority = edge.authority
        token = bearer_token(exchange.head.noted.get(b"authorization"))
        if authority is None:
            known = None if token is None else known_token(edge.tokens, token)
            if known is None:
                raise RefusedError(replies.UNAUTHENTICATED)
            exchange.token_name = known.name
            return
        # Clients of a dstack server know 403 only.
        dstack = isinstance(authority.auth, DstackAuth)
        if token is None:
            raise RefusedError(forbidden(project) if dstack else replies.UNAUTHENTICATED)
        verdict = authority.known(key, token)
        if verdict is Verdict.UNKNOWN:
            verdict = await admit.ask(authority, key, token, exchange)
        if verdict is Verdict.STALE:
            edge.meter(exchange).auth_stale()
        if (refusal := admit.of_verdict(verdict)) is not None:
            raise RefusedError(forbidden(project) if dstack and refusal.status == 403 else refusal)

    # --- the body

    async def _read_model(self) -> str:
        """Reads as far as `model`, and puts back what it read."""
        exchange = self._exchange
        name = ModelName()
        if exchange.length:
            exchange.send_continue()
            begun = await self._read_until(name.feed, self._endpoint.max_body_size)
            exchange.payload = BegunBody(begun, exchange.payload)
        if name.value is None:
            raise RefusedError(NO_MODEL)
        return name.value

    async def _read_until(self, enough: Callable[[bytes], bool], max_size: int) -> list[bytes]:
        """Pieces of the body, the last one of which was `enough`, or all of it."""
        edge = self._edge
        pieces: list[bytes] = []
        size = 0
        try:
            while data := await self._read():
                pieces.append(data)
                size += len(data)
                edge.held_size += len(data)
                if size > max_size:
                    raise RefusedError(replies.BODY_TOO_LARGE)
                if enough(data):
                    break
                if edge.held_size > HELD_MAX:
                    raise RefusedError(_OVERLOADED)
        finally:
            edge.held_size -= size
        return pieces

    async def _read(self) -> bytes:
        payload = self._exchange.payload
        if payload.is_eof():
            return payload.read_nowait()
        try:
            async with asyncio.timeout(self._edge.plane.body_idle_timeout):
                return await payload.readany()
        except TimeoutError:
            raise RefusedError(replies.BODY_TIMEOUT) from None

    # --- endings

    def _answer(self, reply: LocalReply) -> None:
        exchange = self._exchange
        exchange.running = None
        if reply.rejection:
            self._edge.rejected(exchange, reply.rejection)
        reply = in_openai_shape(reply)
        if exchange.served is None:
            reply = replace(reply, headers=(*reply.headers, *_cors_fields()))
        exchange.answer(reply)

    def client_broke(self, reply: LocalReply) -> None:
        """As other refusals of this host."""
        self.client_gone()
        self._exchange.close = True
        self._answer(reply)

    def end(self, reply: LocalReply) -> None:
        if self._task is not None:
            self._task.cancel()
        self._answer(reply)


def _cors_fields() -> tuple[tuple[bytes, bytes], ...]:
    return cors_fields(_CORS, None)
