"""The keys of `auth`: how services are guarded.

Owns: its raw shape. Does not own: tokens that stand there twice (config.convert), asking.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema

from gatewayd.config.errors import BadTableError, BadValueError
from gatewayd.config.leaf import LIST, Leaf, one_of
from gatewayd.config.numbers import Bool, Duration, DurationOrZero
from gatewayd.config.table import Table, by_type
from gatewayd.config.words import AuthorityUrl, OptionalPrefix, Path, Sha256, Text, Token
from gatewayd.core.model import DstackAuth, HttpAuth, TcpAddress

_DSTACK_AUTH = DstackAuth()
_HTTP_AUTH = HttpAuth(TcpAddress("", 0), "/")
_TYPES = ("tokens", "http", "dstack", "none")


class TokenTable(Table):
    """A token that is accepted: in plain or as its SHA-256."""

    place: ClassVar[str] = "auth.tokens[]"

    name: Text
    token: Token | None = None
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _one_form(self) -> TokenTable:
        if (self.token is None) == (self.sha256 is None):
            raise BadTableError(
                "a token has exactly one of `token` and `sha256`", keys=("token", "sha256")
            )
        return self


class TokensAuthTable(Table):
    """Tokens that stand in this file."""

    place: ClassVar[str] = "auth"

    type: Literal["tokens"]
    tokens: Annotated[list[TokenTable], LIST]
    forward: Bool = False
    """Whether replicas are sent the client's Authorization."""

    @model_validator(mode="after")
    def _somebody(self) -> TokensAuthTable:
        if not self.tokens:
            raise BadTableError("expected at least one token", keys=("tokens",), at="tokens")
        return self


class AskedAuthTable(Table):
    cache: DurationOrZero = _HTTP_AUTH.cache
    """How long a yes or no is kept per service and token."""
    stale_if_error: DurationOrZero = _HTTP_AUTH.stale_if_error
    """How long a good token stays good while the authority is down."""
    timeout: Duration = _HTTP_AUTH.timeout
    forward: Bool = False
    """Whether replicas are sent the client's Authorization."""


class HttpAuthTable(AskedAuthTable):
    """Ask an authority: 2xx is yes, 401 and 403 are no, anything else is "cannot tell"."""

    place: ClassVar[str] = "auth"

    type: Literal["http"]
    url: AuthorityUrl
    """http://host:port/path or unix:/socket:/path."""
    path: OptionalPrefix = None
    """The path to ask for when `url` is unix:/socket alone."""

    @model_validator(mode="after")
    def _one_path(self) -> HttpAuthTable:
        if self.path is not None and self.url[1]:
            raise BadTableError("`url` has a path already", keys=("url", "path"), at="path")
        return self


class DstackAuthTable(AskedAuthTable):
    """Ask a dstack server over one of its sockets."""

    place: ClassVar[str] = "auth"

    type: Literal["dstack"]
    server_connections_dir: Path = _DSTACK_AUTH.server_connections_dir


class NoAuthTable(Table):
    """As if there were no `auth`."""

    type: Literal["none"]


class OtherAuthTable(Table, extra="ignore"):
    """What has none of the types: there is nothing to say about its other keys."""

    type: Annotated[str, one_of(*_TYPES)]


def _null(value: object) -> None:
    if value is not None:
        raise BadValueError("expected a table with the key `type`")


AuthEntry = Annotated[
    Annotated[None, Leaf(_null, {"type": "null"}), Tag("<text>")]
    | Annotated[TokensAuthTable, Tag("<tokens>")]
    | Annotated[HttpAuthTable, Tag("<http>")]
    | Annotated[DstackAuthTable, Tag("<dstack>")]
    | Annotated[NoAuthTable, Tag("<none>")]
    | SkipJsonSchema[Annotated[OtherAuthTable, Tag("<other>")]],
    Discriminator(by_type(*_TYPES)),
]
