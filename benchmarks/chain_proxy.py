"""The chain that gatewayd replaces: nginx -> sglang-router -> nginx bridge -> Unix socket.

Owns: starting it as the gateways of old did: one nginx that is both the public site in front of
the router and the loopback port behind it, and one router with its then command line.
Does not own: what is measured on it.

Where the original left room it is taken at its best: the site keeps connections to the router
alive and asks no authority about tokens. The bridge opens a connection per request, as it did.
"""

from __future__ import annotations

import json
import sys

from benchmarks.bench import ask, ask_json, free_port, until
from benchmarks.nginx_proxy import EDGE, NginxProxy
from benchmarks.processes import BenchError, Process

_BRIDGE = """\
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        access_log off;
        location / {{
            proxy_pass http://unix:{socket};
            proxy_http_version 1.1;
            proxy_read_timeout 300s;
            proxy_buffering off;
        }}
    }}
"""


class OldChain(NginxProxy):
    router: Process | None = None

    def servers(self) -> str:
        self.router_port = free_port()
        self.bridge_port = free_port()
        return EDGE.format(
            tls="", members=f"server 127.0.0.1:{self.router_port};", port=self.port
        ) + _BRIDGE.format(port=self.bridge_port, socket=self.shape.sockets[0])

    def start(self) -> None:
        super().start()
        argv = [sys.executable, "-m", "sglang_router.launch_router"]
        argv += ["--host", "127.0.0.1", "--port", str(self.router_port)]
        argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        argv += ["--log-level", "info", "--log-dir", str(self.folder / "router_logs")]
        argv += ["--policy", "cache_aware"]
        log = self.folder / "router.log"
        self.router = Process(f"{self.name}'s router", argv, cores=self.cores, log=log)

    def wait_ready(self) -> None:
        assert self.process is not None
        assert self.router is not None
        until("the router", self.router, self._router_lists, 20.0)
        # Without the label the router would ask a model hub for the tokenizer.
        target = {
            "url": f"http://127.0.0.1:{self.bridge_port}",
            "labels": {"tokenizer_path": "/dev/null"},
        }
        status, body = ask(
            self.router_port,
            "POST",
            "/workers",
            headers={"Content-Type": "application/json"},
            body=json.dumps(target).encode(),
        )
        if status != 202:
            raise BenchError(f"the router refused its target: {status} {body!r}")
        until("the router's target", self.router, self._target_healthy, 10.0)
        until("the chain", self.process, self._answers, 5.0)

    def _router_lists(self) -> bool:
        return ask(self.router_port, "GET", "/workers")[0] == 200

    def _target_healthy(self) -> bool:
        listed = ask_json(self.router_port, "/workers")["workers"]
        assert isinstance(listed, list)
        return bool(listed) and all(target["is_healthy"] for target in listed)

    def _answers(self) -> bool:
        from benchmarks.load import CHAT

        headers = self.bench.headers(**{"Content-Type": "application/json"})
        return ask(self.port, "POST", "/v1/chat/completions", headers=headers, body=CHAT)[0] == 200

    def roles(self) -> dict[str, list[int]]:
        assert self.router is not None
        self.router.require_alive()
        return {**super().roles(), "router": [self.router.pid]}

    def stop(self) -> None:
        super().stop()  # first: the router drains until its clients are gone
        if self.router is not None:
            self.router.stop(timeout=1.0)  # its own grace is minutes
