"""The keys of models: what a service's is called, and where all of a project's are served.

Owns: the raw shape of `services[].model` and of `model_endpoint`, and what they mean.
Does not own: the other keys of a service (config.schema_service).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Tag, model_validator

from gatewayd.config.errors import BadTableError, BadValueError
from gatewayd.config.leaf import Leaf, one_of, or_null, string
from gatewayd.config.numbers import OptionalBool
from gatewayd.config.rules import Rules
from gatewayd.config.table import Table, text_or_table
from gatewayd.config.words import Domain, Prefix, Text
from gatewayd.core.entrypoint import OPENAI, Entrypoint, ModelFormat, OpenAiFormat, TgiFormat
from gatewayd.core.model import Service

_TGI_KEYS = ("chat_template", "eos_token")


def _template(value: object) -> str:
    """A template has lines, and often ends in none."""
    if isinstance(value, str) and value:
        return value
    raise BadValueError("expected a Jinja template", wants_text=True, show_found=False)


def _name(value: object) -> str:
    if isinstance(value, (dict, list)):
        raise BadValueError("expected the name of a model or a table")
    return string(value, "expected the name of a model or a table")


Template = Annotated[str, Leaf(_template, {"type": "string", "minLength": 1})]


class ModelTable(Table):
    """A model that is not served as OpenAI's API below /v1."""

    place: ClassVar[str] = "services[].model"

    name: Text
    """The name that clients ask for."""
    format: Annotated[Literal["openai", "tgi"], one_of("openai", "tgi")] = "openai"
    """openai: the replicas speak OpenAI's API; tgi: Text Generation Inference's own."""
    prefix: Prefix = OPENAI.prefix
    """Below it the replicas serve OpenAI's API; only with `format: openai`."""
    chat_template: Template | None = None
    """What makes a prompt of messages, in Jinja; with `format: tgi`, mostly file:/path."""
    eos_token: Text | None = None
    """What ends an answer; with `format: tgi`."""

    @model_validator(mode="after")
    def _keys_of_its_format(self) -> ModelTable:
        for key in _TGI_KEYS:
            given = getattr(self, key) is not None
            if given and self.format != "tgi":
                raise BadTableError(
                    f"`{key}` means nothing without `format: tgi`", keys=("format", key), at=key
                )
            if not given and self.format == "tgi":
                raise BadTableError(f"`format: tgi` needs the key `{key}`", keys=("format", key))
        if self.format == "tgi" and "prefix" in self.model_fields_set:
            raise BadTableError(
                "`prefix` means nothing with `format: tgi`", keys=("format", "prefix"), at="prefix"
            )
        return self

    def meaning(self) -> ModelFormat:
        if self.chat_template is not None and self.eos_token is not None:
            return TgiFormat(self.chat_template, self.eos_token)
        return OpenAiFormat(self.prefix)


ModelKey = Annotated[
    Annotated[str | None, or_null(Leaf(_name, {"type": "string", "minLength": 1})), Tag("<text>")]
    | Annotated[ModelTable, Tag("<table>")],
    Discriminator(text_or_table),
]


def named_model(key: str | ModelTable | None) -> tuple[str | None, ModelFormat]:
    return (key.name, key.meaning()) if isinstance(key, ModelTable) else (key, OPENAI)


class ModelEndpointTable(Table):
    """One host for all models of the project, each under its name."""

    place: ClassVar[str] = "model_endpoint"

    domain: Domain
    auth: OptionalBool = None
    """Whether a token is needed whatever the model's service says; default: true when `auth` is
    configured at the top."""


def convert_endpoint(
    table: ModelEndpointTable | None,
    project: str,
    services: tuple[Service, ...],
    *,
    configured: bool,
    rules: Rules,
) -> Entrypoint | None:
    """`configured`: somebody can be asked about tokens."""
    if table is None:
        return None
    for i, service in enumerate(services):
        if table.domain in service.domains:
            there = rules.path("services", i)
            rules.broken(
                ("model_endpoint", "domain"), f"the domain `{table.domain}` is also that of {there}"
            )
    if table.auth and not configured and rules.known("auth"):
        rules.broken(
            ("model_endpoint", "auth"),
            "nobody is configured to ask",
            "add an `auth` table at the top",
        )
    return Entrypoint(project, table.domain, auth=configured if table.auth is None else table.auth)
