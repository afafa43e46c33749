"""The types of this folder's fixtures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gatewayd.config.model import Config
from gatewayd.config.rules import CheckCertificate, CheckRouter


class Load(Protocol):
    def __call__(
        self,
        text: str,
        env: Mapping[str, str] | None = None,
        *,
        check_router: CheckRouter | None = None,
        check_certificate: CheckCertificate | None = None,
    ) -> Config: ...


class Problems(Protocol):
    def __call__(
        self,
        text: str,
        env: Mapping[str, str] | None = None,
        *,
        check_router: CheckRouter | None = None,
        check_certificate: CheckCertificate | None = None,
    ) -> list[str]: ...
