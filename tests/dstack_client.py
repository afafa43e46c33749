"""Drives dstack's own gateway client, as its server does, in an environment that has dstack.

    python dstack_client.py SOCKET     # a line of JSON in, {"call": name, ...arguments}; one out

Not a test: it runs in an environment of its own (make test-dstack), with one of many releases.
Arguments that a release does not know are left out, those that it wants besides are not sent by it.
"""

import asyncio
import inspect
import json
import sys
import uuid
from types import SimpleNamespace
from typing import Any

from dstack._internal.core.errors import GatewayError
from dstack._internal.core.models.configurations import RateLimit
from dstack._internal.core.models.instances import SSHConnectionParams
from dstack._internal.server.services.gateways.client import GatewayClient


def replica(arguments: dict[str, Any]) -> dict[str, Any]:
    """The server's rows, as far as the client looks at them."""
    user, _, host = arguments["ssh_host"].partition("@")
    head = {"hostname": host, "username": user, "port": arguments["ssh_port"]}
    provisioned = SimpleNamespace(
        hostname=host,
        username=user,
        ssh_port=arguments["ssh_port"],
        dockerized=False,
        internal_ip=None,
        ssh_proxy=None,
    )
    configuration = SimpleNamespace(type="service")
    spec = SimpleNamespace(run_name=arguments["run_name"], configuration=configuration)
    return {
        "project": arguments["project"],
        "run_name": arguments["run_name"],
        "configuration": configuration,
        "run": SimpleNamespace(project_name=arguments["project"], run_spec=spec),  # before 0.21
        "job_spec": SimpleNamespace(service_port=arguments["app_port"]),
        "job_submission": SimpleNamespace(
            id=uuid.UUID(arguments["job_id"]),
            job_provisioning_data=provisioned,
            job_runtime_data=None,
        ),
        "instance_project_ssh_private_key": None,
        "ssh_head_proxy": SSHConnectionParams(**head),
        "ssh_head_proxy_private_key": arguments["key"],
    }


def prepared(call: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if call == "register_replica":
        return replica(arguments)
    for name in ("run_id", "job_id"):
        if name in arguments:
            arguments[name] = uuid.UUID(arguments[name])
    if "rate_limits" in arguments:
        limits = arguments["rate_limits"]
        arguments["rate_limits"] = [RateLimit.parse_obj(limit) for limit in limits]
    if (router := arguments.get("router")) is not None:  # before 0.21
        arguments["router"] = SimpleNamespace(dict=lambda: router)
    return arguments


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return [plain(each) for each in value]
    return json.loads(value.json()) if hasattr(value, "json") else value


async def main(socket: str) -> None:
    client = GatewayClient(uds=socket)
    for line in sys.stdin:
        request = json.loads(line)
        call = request.pop("call")
        method = getattr(client, call, None)
        if method is None:
            answer: dict[str, Any] = {"unknown": call}
        else:
            known = inspect.signature(method).parameters
            arguments = {k: v for k, v in prepared(call, request).items() if k in known}
            try:
                answer = {"result": plain(await method(**arguments))}
            except GatewayError as error:
                answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


asyncio.run(main(sys.argv[1]))
