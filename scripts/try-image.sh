#!/usr/bin/env bash
# Run the built image for real where no container engine runs: its own files, read-only; its user;
# its init; a process namespace; tmpfs for what may be written. usage: scripts/try-image.sh [NAME]
# Prints what a client gets through it, and ends by itself. Needs root and Debian's buildah.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:-gatewayd}
public=127.0.0.1:${PUBLIC_PORT:-18080} admin=127.0.0.1:${ADMIN_PORT:-18000}
contained() { buildah ${STORAGE_DRIVER:+--storage-driver "$STORAGE_DRIVER"} "$@"; }

container=$(contained from --pull-never "localhost/$name")
root=$(contained mount "$container")
scratch=$(mktemp -d)
unshared=
cleanup() {
    if [[ -n $unshared ]]; then kill "$unshared" 2>/dev/null || true; fi
    contained umount "$container" >/dev/null
    contained rm "$container" >/dev/null
    rm -rf "$scratch"
}
trap cleanup EXIT

cat >"$scratch/gateway.yaml" <<END
domain: localhost
router: sglang
workers: 2
listen: {http: $public, admin: $admin}
services:
  - name: demo
    domain: 127.0.0.1
    replicas: [unix:/run/replicas/a.sock, unix:/run/replicas/b.sock]
END

# Everything below happens in mount and process namespaces of its own, gone when it ends.
cat >"$scratch/inside.sh" <<'END'
set -eu
root=$1 scratch=$2
mount --make-rprivate /
mkdir -p "$root/etc/gatewayd"
touch "$root/etc/gatewayd/gateway.yaml"
mount --bind "$root" "$root"
mount --bind "$scratch/gateway.yaml" "$root/etc/gatewayd/gateway.yaml"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o uid=10001,gid=10001,mode=0700 tmpfs "$root/var/lib/gatewayd"
mount -t tmpfs -o uid=10001,gid=10001,mode=0755 tmpfs "$root/run/replicas"
mount -t tmpfs tmpfs "$root/dev"
for device in null zero random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -o remount,bind,ro "$root"
within() { # in a subshell, so that its pid is the program's
    exec chroot --userspec=10001:10001 "$root" /usr/bin/env -i -C /var/lib/gatewayd \
        PATH=/opt/gatewayd/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 \
        PYTHONDONTWRITEBYTECODE=1 HOME=/var/lib/gatewayd "$@"
}
(within id)
touch "$root/opt/gatewayd/x" 2>&1 | grep "Read-only file system"
within tini -s -- python3 -m gatewayd.demo.replica --socket /run/replicas/a.sock --name a &
within tini -s -- python3 -m gatewayd.demo.replica --socket /run/replicas/b.sock --name b &
within tini -s -- gatewayd run -c /etc/gatewayd/gateway.yaml &
gateway=$! # its tini
trap 'kill -TERM $gateway' TERM
(
    tries=0
    until (within gatewayd status -c /etc/gatewayd/gateway.yaml) >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 60 ] || exit 1
        sleep 0.5
    done
    echo "--- health check: gatewayd status"
    within gatewayd status -c /etc/gatewayd/gateway.yaml
) || { echo "never healthy" >&2; exit 1; }
touch "$scratch/healthy"
code=0
wait $gateway || code=$?
if [ $code -gt 128 ]; then code=0; wait $gateway || code=$?; fi
echo "--- the gateway ended with $code"
exit $code
END
unshare --mount --pid --fork --kill-child sh "$scratch/inside.sh" "$root" "$scratch" &
unshared=$!
until [[ -e $scratch/healthy ]]; do
    kill -0 "$unshared" || exit 1
    sleep 0.2
done
echo "--- a streamed completion"
curl --fail --silent --show-error --no-buffer "http://$public/v1/chat/completions" \
    -H 'Content-Type: application/json' \
    -d '{"model": "demo-llm", "stream": true, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}'
kill -TERM "$(pgrep -P "$unshared")" # the shell inside, which passes it on
wait "$unshared"
unshared=
