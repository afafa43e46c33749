# Built by Docker, Podman and buildah alike; how to build and run it: docs/container.md
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY . .
# build/wheels is there when the build itself reaches no package index (scripts/image.sh): every
# wheel, pip's own among them.
RUN python3 -m venv --without-pip /opt/gatewayd \
    && if [ -d build/wheels ]; then \
        PYTHONPATH="$(echo build/wheels/pip-*.whl)" /opt/gatewayd/bin/python -m pip install \
            --no-cache-dir --no-index --find-links build/wheels gatewayd; \
    else \
        python3 -m pip --python /opt/gatewayd/bin/python install \
            --no-cache-dir --constraint requirements.lock .; \
    fi

FROM ${BASE}
RUN command -v tini >/dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends tini \
        && rm -rf /var/lib/apt/lists/*; }
# A volume first used at one of these folders takes over its owner.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/gatewayd \
        --shell /usr/sbin/nologin gatewayd \
    && install -d -o gatewayd -g gatewayd -m 0700 /var/lib/gatewayd \
    && install -d -o gatewayd -g gatewayd -m 0755 /run/replicas \
    && install -d /etc/gatewayd
COPY --from=build /opt/gatewayd /opt/gatewayd
ENV PATH=/opt/gatewayd/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/gatewayd
VOLUME ["/var/lib/gatewayd"]
EXPOSE 8080
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["gatewayd", "status", "-c", "/etc/gatewayd/gateway.yaml"]
ENTRYPOINT ["tini", "--", "gatewayd"]
CMD ["run", "-c", "/etc/gatewayd/gateway.yaml"]
