"""The files of `gatewayd install --dstack`.

Owns: their text and places. Does not own: writing them (cli.install_steps).

A dstack server updates its gateways: it installs dstack into the venv that is not in use, writes
`dstack.gateway.service` and `start.sh` anew, flips `version`, and restarts `dstack.gateway`. All of
that goes on to work, and changes nothing: a drop-in, which no update touches, makes
`dstack.gateway` a unit that only stands for gatewayd's own.
"""

from __future__ import annotations

from typing import Final

MARK: Final = "# Written by `gatewayd install --dstack`"
USER: Final = "ubuntu"

CONFIG_PATH: Final = "/etc/gatewayd/dstack.yaml"
UNIT_PATH: Final = "/etc/systemd/system/gatewayd.service"
DROP_IN_PATH: Final = "/etc/systemd/system/dstack.gateway.service.d/gatewayd.conf"
DSTACK_UNIT_PATH: Final = "/etc/systemd/system/dstack.gateway.service"
DSTACK_DIR: Final = "/home/ubuntu/dstack"

CONFIG: Final = f"""\
{MARK}, which does not write it again: it is yours.
# Services, entrypoints and certificates' authority come from the dstack server.
listen:
  http: 0.0.0.0:80
  https: 0.0.0.0:443
  admin: 127.0.0.1:8000
auth:
  type: dstack
  server_connections_dir: {DSTACK_DIR}/server-connections
certificate: lets-encrypt
# Behind a load balancer that ends TLS: whose X-Forwarded-For and X-Forwarded-Proto are believed.
# trusted_proxies: [10.0.0.0/8]
state_dir: /var/lib/gatewayd/state
import_state: {DSTACK_DIR}/state-v2.json
"""


def unit(command: str) -> str:
    return f"""\
{MARK}; `--uninstall` removes it.
[Unit]
Description=gatewayd in the place of a dstack gateway
Wants=network-online.target
After=network-online.target
Conflicts=nginx.service

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} run -c {CONFIG_PATH}
ExecReload=/bin/kill -HUP $MAINPID
EnvironmentFile=-/etc/gatewayd/environment
User={USER}
Group={USER}
StateDirectory=gatewayd
StateDirectoryMode=0700
WorkingDirectory=%S/gatewayd
Restart=always
RestartSec=1
RestartPreventExitStatus=2
KillMode=mixed
TimeoutStopSec=60
OOMPolicy=continue
LimitNOFILE=65535
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
ProtectSystem=full

[Install]
WantedBy=multi-user.target
"""


DROP_IN: Final = f"""\
{MARK}; `--uninstall` removes it.
# Whatever dstack.gateway.service says: gatewayd has a unit of its own, which no update of dstack
# restarts.
[Unit]
Wants=gatewayd.service
After=gatewayd.service

[Service]
Type=oneshot
RemainAfterExit=yes
Restart=no
ExecStart=
ExecStart=/bin/true
"""

# Where no dstack gateway ever was; an update of dstack puts its own here.
DSTACK_UNIT: Final = f"""\
{MARK}
[Unit]
Description=stands for gatewayd.service, for updates of dstack

[Service]
ExecStart=/bin/true
User={USER}
Group={USER}

[Install]
WantedBy=default.target
"""
