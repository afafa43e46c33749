"""The keys of HTTPS: where certificates come from, and what a service does with them.

Owns: the raw shape of `certificate` and of `services[].hsts`. Does not own: what follows from
several of them (config.convert_certificate).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema

from gatewayd.config.errors import BadTableError, BadValueError
from gatewayd.config.leaf import ONE_OR_LIST, Leaf, one_of, or_null, text_leaf
from gatewayd.config.numbers import BOOLEAN, DURATION_OR_ZERO, Bool, DurationOrZero
from gatewayd.config.table import Table, by_type, text_or_table
from gatewayd.config.values import DOMAIN, parse_domain
from gatewayd.config.words import OptionalPath, OptionalText, Path, Token

_LIVE = "/etc/letsencrypt/live"


def _directory_url(text: str) -> str:
    if not text.startswith(("https://", "http://")):
        raise BadValueError("expected the URL of an ACME directory")
    return text


def _certificate_name(text: str) -> str:
    wildcard = "*." if text.startswith("*.") else ""
    return wildcard + parse_domain(text.removeprefix("*."))


class FileCertificateTable(Table):
    """A certificate that somebody else keeps current."""

    place: ClassVar[str] = "certificate"

    type: Literal["file"]
    cert: Path
    """PEM: the certificate, then those that it was signed with."""
    key: Path
    """PEM, without a password."""
    default: Bool = False
    """Also for clients that name no host, or one without a certificate."""


class LiveFolderTable(Table):
    """Certificates that certbot keeps current: all of its folder."""

    place: ClassVar[str] = "certificate"

    type: Literal["letsencrypt-live"]
    dir: Path = _LIVE
    """A folder for each, with fullchain.pem and privkey.pem."""


class LetsEncryptTable(Table):
    """Certificates from Let's Encrypt."""

    place: ClassVar[str] = "certificate"

    type: Literal["lets-encrypt"]
    email: OptionalText = None
    eab_kid: OptionalText = None
    eab_hmac_key: Token | None = None
    challenges: Annotated[
        list[Annotated[str, one_of("http-01", "tls-alpn-01", "dns-01")]], ONE_OR_LIST
    ] = ["http-01", "tls-alpn-01"]  # noqa: RUF012 -- pydantic copies it
    dns_hook: OptionalPath = None
    """A program that adds and removes a DNS record, for dns-01."""
    names: Annotated[list[Annotated[str, text_leaf(_certificate_name, DOMAIN)]], ONE_OR_LIST] = (
        Field(default_factory=list)
    )
    """Names with a certificate of their own, such as *.example.com; of others it follows."""

    @model_validator(mode="after")
    def _whole_binding(self) -> LetsEncryptTable:
        if (self.eab_kid is None) != (self.eab_hmac_key is None):
            raise BadTableError(
                "`eab_kid` and `eab_hmac_key` belong together", keys=("eab_kid", "eab_hmac_key")
            )
        if "dns-01" in self.challenges and self.dns_hook is None:
            raise BadTableError("dns-01 needs a `dns_hook`", keys=("dns_hook",))
        if self.dns_hook is None and any(name.startswith("*.") for name in self.names):
            raise BadTableError("a wildcard is proven by dns-01: set `dns_hook`", keys=("names",))
        return self


class AcmeTable(LetsEncryptTable):
    """Certificates from an ACME authority; several servers in order of preference."""

    type: Literal["acme"]  # type: ignore[assignment]
    server: Annotated[
        list[Annotated[str, text_leaf(_directory_url, "expected the URL of an ACME directory")]],
        ONE_OR_LIST,
    ]
    ca_file: OptionalPath = None
    """What the authority's own HTTPS is checked against."""


TYPES = ("file", "letsencrypt-live", "acme", "lets-encrypt")


class OtherCertificateTable(Table, extra="ignore"):
    type: Annotated[str, one_of(*TYPES)]


CertificateEntry = Annotated[
    Annotated[
        str | None,
        or_null(one_of("lets-encrypt", also="a table with the key `type`")),
        Tag("<text>"),
    ]
    | Annotated[FileCertificateTable, Tag("<file>")]
    | Annotated[LiveFolderTable, Tag("<letsencrypt-live>")]
    | Annotated[LetsEncryptTable, Tag("<lets-encrypt>")]
    | Annotated[AcmeTable, Tag("<acme>")]
    | SkipJsonSchema[Annotated[OtherCertificateTable, Tag("<other>")]],
    Discriminator(by_type(*TYPES)),
]

# --- of a service ------------------------------------------------------------------------------


class OwnCertificateTable(FileCertificateTable):
    place: ClassVar[str] = "services[].certificate"


class OtherOwnCertificateTable(Table, extra="ignore"):
    type: Annotated[str, one_of("file")]


OwnCertificateEntry = Annotated[
    Annotated[
        None,
        Leaf(lambda value: _no_text(value), {"type": "null"}),
        Tag("<text>"),
    ]
    | Annotated[OwnCertificateTable, Tag("<file>")]
    | SkipJsonSchema[Annotated[OtherOwnCertificateTable, Tag("<other>")]],
    Discriminator(by_type("file")),
]


def _no_text(value: object) -> None:
    if value is not None:
        raise BadValueError("expected a table with the key `type`")


class HstsTable(Table):
    """Browsers are to come by HTTPS only (RFC 6797)."""

    place: ClassVar[str] = "services[].hsts"

    max_age: DurationOrZero
    include_subdomains: Bool = False
    preload: Bool = False


HstsEntry = Annotated[
    Annotated[float | None, or_null(DURATION_OR_ZERO), Tag("<text>")]
    | Annotated[HstsTable, Tag("<table>")],
    Discriminator(text_or_table),
]


def _auto(value: object) -> bool | None:
    if value == "auto":
        return None
    try:
        return bool(BOOLEAN.parse(value))
    except BadValueError as error:
        raise BadValueError("expected auto, true or false", suggestion=error.suggestion) from None


HttpsKey = Annotated[
    bool | None, Leaf(_auto, {"anyOf": [{"const": "auto"}, *BOOLEAN.schema["anyOf"]]})
]
