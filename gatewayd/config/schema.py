"""The keys at the top of the gateway file, and the JSON Schema of all of them.

Owns: the raw shape of the file. Does not own: its tables (config.schema_edge, schema_auth,
schema_service), what follows from several keys together (config.convert).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from gatewayd.config.leaf import LIST, ONE_OR_LIST, Leaf, one_of
from gatewayd.config.numbers import Bool, DurationOrZero, Workers
from gatewayd.config.schema_auth import AuthEntry
from gatewayd.config.schema_certificate import CertificateEntry
from gatewayd.config.schema_edge import (
    LimitsTable,
    ListenTable,
    LogTable,
    PortsTable,
    StatsTable,
)
from gatewayd.config.schema_models import ModelEndpointTable
from gatewayd.config.schema_service import RouterEntry, ServiceTable
from gatewayd.config.table import Table
from gatewayd.config.words import (
    GatewayDomain,
    Network,
    OptionalPath,
    OptionalText,
    Path,
    ProjectName,
)

CLOUD_KEYS = ("backend", "region", "instance_type", "public_ip", "tags")


def _cloud(value: object) -> str | None:
    """Whatever other gateways put there; it is only shown."""
    if isinstance(value, dict):
        return ",".join(f"{key}={_cloud(entry) or ''}" for key, entry in value.items())
    if isinstance(value, list):
        return ",".join(_cloud(entry) or "" for entry in value)
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)


Cloud = Annotated[str | None, Leaf(_cloud, {})]


class GatewayFile(Table):
    """A gateway: where it listens and which services it stands in front of."""

    type: Annotated[Literal["gateway"], one_of("gateway")] = "gateway"
    name: OptionalText = None
    """Default: the host's name."""
    project: ProjectName = "main"
    """The registry project that the services of this file belong to."""
    domain: GatewayDomain | None = None
    """A service answers at <service>.<domain> unless it names its own."""
    router: RouterEntry = None
    """The default router of the services."""
    model_endpoint: ModelEndpointTable | None = None
    """null: models are served at the domains of their services only."""
    certificate: CertificateEntry = None
    """null: plain HTTP."""
    listen: ListenTable = Field(default_factory=ListenTable, json_schema_extra={"default": {}})
    workers: Workers = Field(default=None, json_schema_extra={"default": "auto"})
    """Data-plane processes; auto: the CPU cores this process may use, at most 8."""
    state_dir: Path = Field(default="./state", validate_default=True)
    """Registry state, certificates, router logs; created 0700."""
    import_state: OptionalPath = None
    """The state file of a gateway that this one replaces (state-v2.json, or the older state.json);
    read at a start that finds no registered state in state_dir."""
    import_keys: Path = "/home/ubuntu/.ssh/projects"
    """The folder of the ssh keys that belong to the older form, a file for each project."""
    run_dir: OptionalPath = None
    """Where gatewayd.pid is written while the gateway runs; null writes none."""
    ports: PortsTable = Field(default_factory=PortsTable, json_schema_extra={"default": {}})
    trusted_proxies: Annotated[list[Network], ONE_OR_LIST] = Field(default_factory=list)
    """CIDRs whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    log: LogTable = LogTable()
    auth: AuthEntry = None
    """How services with `auth: true` are guarded."""
    limits: LimitsTable = LimitsTable()
    drain_timeout: DurationOrZero = 30.0
    """How long a graceful stop waits for what still runs."""
    upgrade_drain_timeout: DurationOrZero = 3600.0
    """The same once a successor has taken over (SIGUSR2): nobody waits for that end."""
    stats: StatsTable = StatsTable()
    debug_headers: Bool = False
    """Whether answers name the replica that gave them; a service may say otherwise."""
    services: Annotated[list[ServiceTable], LIST] = Field(default_factory=list)
    backend: Cloud = None
    region: Cloud = None
    instance_type: Cloud = None
    public_ip: Cloud = None
    tags: Cloud = None


def json_schema() -> dict[str, Any]:
    """What editors check a gateway file against (JSON Schema 2020-12)."""
    schema = GatewayFile.model_json_schema(mode="validation")
    _without_titles(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gatewayd configuration",
        **schema,
    }


def schema_text() -> str:
    """`json_schema()` as it is printed, and kept in configs/gateway.schema.json."""
    return json.dumps(json_schema(), indent=2) + "\n"


def _without_titles(schema: object) -> None:
    """pydantic gives every key its own name as a title, which says nothing."""
    if isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        for part in schema.values():
            _without_titles(part)
    elif isinstance(schema, list):
        for part in schema:
            _without_titles(part)
