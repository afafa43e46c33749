"""Whether a token may use a project, as proxies beside this one may ask.

Owns: the shape of the answer. Does not own: judging (core.auth, net.authority).
"""

from __future__ import annotations

from aiohttp import web

from gatewayd.control.api.replies import ok, refuse
from gatewayd.control.state import State
from gatewayd.core.auth import Verdict, bearer_token, index_tokens, known_token
from gatewayd.core.model import TokensAuth
from gatewayd.net.authority import Authority, authority_for


class AuthCalls:
    def __init__(self, state: State) -> None:
        self._state = state
        self._authority: Authority | None = None

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/api/auth/{project}", self.auth)
        app.on_cleanup.append(self._close)

    async def auth(self, request: web.Request) -> web.Response:
        """Whether the bearer of the Authorization may use the project's services."""
        project = request.match_info["project"].lower()
        token = bearer_token(request.headers.get("Authorization", "").encode("utf-8", "replace"))
        verdict = Verdict.NO if token is None else await self._judge(project, token)
        if verdict is Verdict.NO:
            return refuse(403, f"Unauthenticated or unauthorized to access project {project}")
        if verdict is Verdict.UNKNOWN:
            answer = refuse(503, "The token could not be checked; try again shortly")
            answer.headers["Retry-After"] = "1"
            return answer
        return ok()

    async def _judge(self, project: str, token: bytes) -> Verdict:
        auth = self._state.auth or self._state.registered_auth
        if isinstance(auth, TokensAuth):
            return Verdict.YES if known_token(index_tokens(auth.tokens), token) else Verdict.NO
        if self._authority is None or self._authority.auth != auth:
            old, self._authority = self._authority, authority_for(auth)
            if old is not None:
                await old.retire()
        if (authority := self._authority) is None:
            return Verdict.NO  # nobody is configured who could say yes
        service = f"{project}/*"
        verdict = authority.known(service, token)
        return await authority.ask(service, token) if verdict is Verdict.UNKNOWN else verdict

    async def _close(self, app: web.Application) -> None:
        if self._authority is not None:
            await self._authority.aclose()
