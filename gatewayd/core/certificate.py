"""Where certificates come from: files that somebody else keeps current, or an ACME authority.

Owns: the values. Does not own: reading files (control.certificate_files), asking an authority
(control.acme_issuer), which service has which (core.model).
"""

from __future__ import annotations

from dataclasses import dataclass

from gatewayd.core.frames import by_fields
from gatewayd.core.secret import Secret


@by_fields
@dataclass(frozen=True, slots=True)
class FileCertificate:
    """Where a certificate with its chain, and its private key, are kept current by somebody else.

    `default`: it is shown to clients that name no host, or one that is not served.
    """

    cert: str
    key: str
    default: bool = False


@by_fields
@dataclass(frozen=True, slots=True)
class LiveFolder:
    """Where certbot keeps its certificates: a folder for each below `path`."""

    path: str


@by_fields
@dataclass(frozen=True, slots=True)
class AcmeCertificate:
    """Certificates that the gateway gets itself (RFC 8555), from the first of `servers` that gives
    one. `names` are those of their own, wildcards as a rule; other names follow from services."""

    servers: tuple[str, ...]  # URLs of directories, in order of preference
    ca_file: str | None = None  # what their own HTTPS is checked against; None: as the system does
    email: str | None = None
    eab_kid: str | None = None  # external account binding: which
    eab_hmac_key: Secret | None = None
    challenges: tuple[str, ...] = ("http-01", "tls-alpn-01")
    dns_hook: str | None = None
    names: tuple[str, ...] = ()


FileSource = FileCertificate | LiveFolder
CertificateSource = FileSource | AcmeCertificate
