"""nginx as an operator tunes it for streams: the peer of every figure.

Owns: its configuration and processes. Does not own: the chain with a router (chain_proxy).

Keep-alive to the replica and to clients without a limit of requests per connection, no response
buffering, the access log on, one worker. It does neither check a token nor limit a rate.
"""

from __future__ import annotations

import os

from benchmarks.bench import Proxy, ask, until
from benchmarks.processes import BenchError, Process, command, family

_MAIN = """\
daemon off;
{user}
worker_processes {workers};
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    {large}
    {servers}
}}
"""
_LARGE = """\
proxy_buffer_size 64k;
    proxy_buffers 16 64k;
    proxy_busy_buffers_size 128k;
    client_body_buffer_size 64k;
    proxy_request_buffering off;"""
EDGE = """\
    upstream replicas {{
        {members}
        keepalive 512;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        {tls}
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_read_timeout 300s;
            proxy_buffering off;
        }}
    }}
"""


# As Mozilla's configuration generator writes it ("intermediate").
_TLS = """\
listen 127.0.0.1:{port} ssl backlog=4096;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_prefer_server_ciphers off;
        ssl_session_cache shared:tls:10m;
        ssl_session_tickets off;"""


class NginxProxy(Proxy):
    IDLE = frozenset({"master"})

    def servers(self) -> str:
        members = " ".join(f"server unix:{path};" for path in self.shape.sockets)
        tls = ""
        if self.shape.tls:
            cert, key = self.bench.certificate()
            tls = _TLS.format(port=self.tls_port, cert=cert, key=key)
        return EDGE.format(members=members, port=self.port, tls=tls)

    def start(self) -> None:
        text = _MAIN.format(
            user="user root;" if os.geteuid() == 0 else "",  # so that it may open the sockets
            workers=self.shape.workers,
            folder=self.folder,
            large=_LARGE if self.shape.large else "",
            servers=self.servers(),
        )
        config = self.folder / "nginx.conf"
        config.write_text(text)
        argv = [self.bench.settings.nginx, "-p", str(self.folder), "-c", str(config)]
        self.process = Process(self.name, argv, cores=self.cores, log=self.folder / "stderr.log")

    def wait_ready(self) -> None:
        assert self.process is not None

        def answers() -> bool:
            headers = self.bench.headers()
            status, _ = ask(self.port, "GET", "/small", headers=headers)
            if status != 200:
                raise BenchError(f"GET /small: {status}")
            return True

        until("nginx", self.process, answers, 10.0)

    def roles(self) -> dict[str, list[int]]:
        assert self.process is not None
        self.process.require_alive()
        master, *children = family(self.process.pid)
        workers = [pid for pid in children if "worker process" in command(pid)]
        if len(workers) != self.shape.workers:
            raise BenchError(f"nginx has {len(workers)} workers: {self.process.last_words()}")
        return {"worker": workers, "master": [master]}

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
