"""Models and the host that serves all of a project's under their names.

Owns: the values that cross every boundary (file and registry -> state -> snapshot).
Does not own: services (core.model), what is compiled of them (core.snapshot).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gatewayd.core.frames import by_fields


@by_fields
@dataclass(frozen=True, slots=True)
class OpenAiFormat:
    """The service speaks OpenAI's API below `prefix`."""

    prefix: str = "/v1"


@by_fields
@dataclass(frozen=True, slots=True)
class TgiFormat:
    """The service speaks Text Generation Inference's own API: the gateway makes a prompt of the
    messages by `chat_template` and translates the answer."""

    chat_template: str
    eos_token: str


ModelFormat = OpenAiFormat | TgiFormat
OPENAI: Final = OpenAiFormat()


@by_fields
@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model of a project: which of the project's services serves it, and how."""

    project: str
    name: str
    service: str  # Service.name
    created: int  # Unix seconds
    format: ModelFormat = OPENAI

    @property
    def service_key(self) -> str:
        return f"{self.project}/{self.service}"


@by_fields
@dataclass(frozen=True, slots=True)
class Entrypoint:
    """The host at which a project's models are served. `auth`: a token is needed whatever the
    service of a model asks for, if somebody is configured who can judge it."""

    project: str
    domain: str
    https: bool = False
    read_timeout: int = 300
    auth: bool = True
