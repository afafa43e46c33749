#!/usr/bin/env bash
# Build the container image. usage: scripts/image.sh [NAME]
#
# With Docker or Podman and a registry that answers this is `docker build .`. With neither it uses
# Debian's buildah, on a base that debootstrap makes from this machine's Debian mirror, and wheels
# that this machine's pip fetches: nothing of either's settings gets into the image.
#
#   BASE=image     another base with Python >= 3.11
#   ENGINE=...     docker | podman | buildah; default: the first that works
#   OFFLINE=1      do not ask an image registry
#   STORAGE_DRIVER=vfs  for buildah where overlay mounts fail in the middle
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:-gatewayd}
default_base=python:3.11-slim-bookworm
suite=bookworm # Python 3.11

say() { echo "image: $*" >&2; }

works() {
    case $1 in
    docker | podman) "$1" info >/dev/null 2>&1 ;;
    buildah) command -v buildah >/dev/null ;;
    esac
}

choose_engine() {
    local engine
    for engine in docker podman buildah; do
        if works "$engine"; then
            echo "$engine"
            return
        fi
    done
    install_tools buildah
    echo buildah
}

install_tools() {
    local tool missing=()
    for tool in "$@"; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        say "needs ${missing[*]} (or a Docker or Podman that runs)"
        exit 1
    fi
    say "installing ${missing[*]}"
    apt-get -qq update >&2
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        "${missing[@]}" </dev/null >/dev/null
}

# buildah where there may be no user namespaces and, in a nested container, no overlay mounts.
contained() {
    BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-$( ((EUID)) || echo chroot)} \
        buildah ${STORAGE_DRIVER:+--storage-driver "$STORAGE_DRIVER"} "$@"
}

pulls() {
    [[ -z ${OFFLINE:-} ]] || return 1
    case $engine in
    buildah) contained pull --quiet "$1" >/dev/null 2>&1 ;;
    *) timeout 300 "$engine" pull --quiet "$1" >/dev/null 2>&1 ;;
    esac
}

# The smallest Debian with a Python, as a local image named $1.
make_base() {
    local image=$1 mirror container
    install_tools debootstrap
    # shellcheck disable=SC2016  # apt's own variables
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v suite="$suite" '$2 == suite {print $1; exit}')
    say "making a base from Debian $suite"
    debootstrap --variant=minbase --include=python3-minimal,libpython3-stdlib,tini,ca-certificates \
        "$suite" "$scratch/root" ${mirror:+"$mirror"} >"$scratch/debootstrap.log" ||
        { tail -n 20 "$scratch/debootstrap.log" >&2; exit 1; }
    # The machine's mirror and what only its packaging needs stay out.
    rm -rf "$scratch/root"/{etc/apt/sources.list,etc/hostname,etc/resolv.conf} \
        "$scratch/root"/var/{cache/apt,lib/apt/lists,log}/* \
        "$scratch/root"/usr/share/{doc,info,locale,man}/*
    container=$(contained from scratch)
    contained copy --quiet "$container" "$scratch/root" / >/dev/null
    contained config --cmd python3 "$container"
    contained commit --quiet --rm "$container" "$image" >/dev/null
    rm -rf "$scratch/root"
}

# Every wheel for Python $1 below build/wheels, which the Dockerfile prefers to an index.
fetch_wheels() {
    say "fetching wheels for Python $1"
    rm -rf build/wheels
    mkdir -p build/wheels
    python3 -m pip wheel --quiet --no-deps --wheel-dir build/wheels .
    python3 -m pip download --quiet --only-binary :all: --python-version "$1" \
        --constraint requirements.lock --dest build/wheels build/wheels/gatewayd-*.whl pip
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch" build/wheels' EXIT
rm -rf build/wheels
engine=${ENGINE:-$(choose_engine)}
base=${BASE:-$default_base}
say "building $name with $engine"
if [[ $engine == buildah && -z ${STORAGE_DRIVER:-} ]] && ! buildah info >/dev/null 2>&1; then
    STORAGE_DRIVER=vfs
fi

if [[ -z ${BASE:-} ]] && ! pulls "$base"; then
    say "no registry gives $base"
    [[ $engine == buildah ]] || { say "name a base that is there: BASE=..."; exit 1; }
    base=localhost/gatewayd-base:$suite
    contained inspect --type image "$base" >/dev/null 2>&1 || make_base "$base"
    fetch_wheels 3.11
fi

case $engine in
buildah) contained build --format docker --build-arg BASE="$base" --tag "$name" . ;;
*) "$engine" build --build-arg BASE="$base" --tag "$name" . ;;
esac
say "built $name"
