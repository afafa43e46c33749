"""What operators ask about certificates that the gateway gets itself.

Owns: paths and answers. Does not own: doing it (control.certs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gatewayd.control.api.replies import ok, read_body, refuse, reply
from gatewayd.control.certs import CertificateError, Certificates
from gatewayd.control.status import describe_certificate

# RFC 5280, 5.3.1; those that whoever holds a certificate may give.
REASONS: Final = {
    "unspecified": 0,
    "key-compromise": 1,
    "affiliation-changed": 3,
    "superseded": 4,
    "cessation-of-operation": 5,
}


class RenewBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    domain: str = Field(min_length=1)


class RevokeBody(RenewBody):
    reason: str = "unspecified"


CERTIFICATE_BODIES: Final[Mapping[str, type[BaseModel]]] = {
    "/api/certificates/renew": RenewBody,
    "/api/certificates/revoke": RevokeBody,
}


class CertificateCalls:
    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/api/certificates", self.list)
        app.router.add_post("/api/certificates/renew", self.renew)
        app.router.add_post("/api/certificates/revoke", self.revoke)

    async def list(self, request: web.Request) -> web.Response:
        """Which there are, until when, and what is wrong."""
        return reply([describe_certificate(each) for each in self._certificates.status()])

    async def renew(self, request: web.Request) -> web.Response:
        """A new one now, whether it is due or not."""
        body = await read_body(request, RenewBody)
        try:
            await self._certificates.renew(body.domain.lower())
        except CertificateError as error:
            return refuse(400, str(error))
        return ok()

    async def revoke(self, request: web.Request) -> web.Response:
        """Tell the authority, and serve another one if it is wanted."""
        body = await read_body(request, RevokeBody)
        reason = REASONS.get(body.reason)
        if reason is None:
            return refuse(400, f"reason is one of {', '.join(REASONS)}")
        try:
            another = await self._certificates.revoke(body.domain.lower(), reason)
        except CertificateError as error:
            return refuse(400, str(error))
        return ok(another=another)
