"""gatewayd as it is operated: tokens checked, a rate limited, metrics and the access log on.

Owns: its configuration file, which process has which role. Does not own: the figures.
"""

from __future__ import annotations

import json
import time

from benchmarks.bench import HOST, Proxy, ask, free_port, until
from benchmarks.processes import BenchError, Process, command, family

PROJECT = "main"
SERVICE = "bench"
_REPORT_S = 1.5  # workers tell control their counts once a second


class GatewayProxy(Proxy):
    IDLE = frozenset({"control"})

    def config(self) -> dict[str, object]:
        """The file's content; JSON is YAML."""
        self.admin = free_port()
        router = {"type": "sglang", "mode": self.shape.router}
        service = {
            "name": SERVICE,
            "domain": HOST,
            "auth": True,
            "client_max_body_size": "128MiB",
            "router": router if self.shape.router else None,
            # Counted for every request, never reached.
            "rate_limits": [
                {"prefix": "/", "rps": 1000000, "burst": 1000000, "key": {"type": "ip_address"}}
            ],
            "replicas": [f"unix:{path}" for path in self.shape.sockets],
        }
        listen: dict[str, object] = {
            "http": [f"127.0.0.1:{self.port}"],
            "admin": f"127.0.0.1:{self.admin}",
        }
        certificate = None
        if self.shape.tls:
            listen["https"] = f"127.0.0.1:{self.tls_port}"
            cert, key = self.bench.certificate()
            certificate = {"type": "file", "cert": str(cert), "key": str(key)}
        return {
            "name": "bench",
            "project": PROJECT,
            "certificate": certificate,
            "listen": listen,
            "workers": self.shape.workers,
            "state_dir": str(self.folder / "state"),
            "run_dir": str(self.folder / "run"),
            "log": {"level": "info", "format": "text", "access": str(self.folder / "access.log")},
            "auth": {"type": "tokens", "tokens": [{"name": "b", "token": self.bench.token}]},
            "services": [service],
        }

    def start(self) -> None:
        config = self.folder / "gateway.yaml"
        config.touch(mode=0o600)
        config.write_text(json.dumps(self.config(), indent=1))
        argv = [*self.bench.settings.gatewayd, "run", "-c", str(config)]
        self.process = Process(self.name, argv, cores=self.cores, log=self.folder / "stderr.log")

    def wait_ready(self) -> None:
        assert self.process is not None
        until(
            "gatewayd's /readyz",
            self.process,
            lambda: ask(self.admin, "GET", "/readyz")[0] == 200,
            20.0,
        )
        if self.shape.router:
            until("a request through the router", self.process, self._routed, 20.0)

    def _routed(self) -> bool:
        """Whether the router is asked for a request: until it knows the replica, the gateway
        rightly goes past it, and the figure would be another one's."""
        before = self.fallbacks()
        self.chat_once()
        return self.fallbacks() == before

    def fallbacks(self) -> float:
        """Requests so far that went to a replica because the router could not serve them."""
        time.sleep(_REPORT_S)
        status, text = ask(self.admin, "GET", "/metrics")
        name = f'gatewayd_router_fallbacks_total{{service="{SERVICE}"}} '
        found = [line for line in text.decode().splitlines() if line.startswith(name)]
        if status != 200 or len(found) != 1:
            raise BenchError(f"/metrics ({status}) does not tell {name}")
        return float(found[0].split()[-1])

    def chat_once(self) -> None:
        from benchmarks.load import CHAT

        headers = self.bench.headers(**{"Content-Type": "application/json"})
        status, body = ask(self.port, "POST", "/v1/chat/completions", headers=headers, body=CHAT)
        if status != 200:
            raise BenchError(f"chat completion answered {status}: {body[:200]!r}")

    def roles(self) -> dict[str, list[int]]:
        assert self.process is not None
        self.process.require_alive()
        found: dict[str, list[int]] = {}
        for pid in family(self.process.pid):
            found.setdefault(self._role(pid), []).append(pid)
        if len(found.get("worker", ())) != self.shape.workers:
            raise BenchError(f"gatewayd's processes are {found}: {self.process.last_words()}")
        if self.shape.router and not (found.get("router") and found.get("bridge")):
            raise BenchError(f"gatewayd has no router or no bridge: {found}")
        return found

    def _role(self, pid: int) -> str:
        assert self.process is not None
        if pid == self.process.pid:
            return "control"
        words = command(pid)
        # The router renames itself, and its launcher names its package: ask for it first.
        for mark, role in (("sglang", "router"), ("bridge", "bridge"), ("worker", "worker")):
            if mark in words:
                return role
        return "other"

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
