"""Bodies about models: what a service's is, and where all of a project's are served.

Owns: their shapes, and what they mean here. Does not own: the rest of a service (schemas).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from gatewayd.config.values import parse_domain
from gatewayd.core.entrypoint import OPENAI, Entrypoint, ModelFormat, OpenAiFormat, TgiFormat

Name = Annotated[str, Field(min_length=1)]
Domain = Annotated[str, AfterValidator(parse_domain)]


class Body(BaseModel):
    """Unknown fields are ignored, here as everywhere."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class OpenAiModelBody(Body):
    type: Literal["chat"] = "chat"
    name: Name
    format: Literal["openai"] = "openai"
    prefix: str = OPENAI.prefix

    def meaning(self) -> ModelFormat:
        return OpenAiFormat(f"/{self.prefix.strip('/')}")


class TgiModelBody(Body):
    type: Literal["chat"] = "chat"
    name: Name
    format: Literal["tgi"]
    chat_template: str
    eos_token: str

    def meaning(self) -> ModelFormat:
        return TgiFormat(self.chat_template, self.eos_token)


def _by_format(value: object) -> str:
    tgi = isinstance(value, dict) and value.get("format") == "tgi"
    return "tgi" if tgi or isinstance(value, TgiModelBody) else "openai"


ModelBody = Annotated[
    Annotated[OpenAiModelBody, Tag("openai")] | Annotated[TgiModelBody, Tag("tgi")],
    Discriminator(_by_format),
]


class OpenAiBody(Body):
    model: ModelBody


class OptionsBody(Body):
    openai: OpenAiBody | None = None


class EntrypointBody(Body):
    domain: Domain
    https: bool
    read_timeout: int = 300

    def meaning(self, project: str) -> Entrypoint:
        return Entrypoint(project, self.domain, self.https, self.read_timeout)
