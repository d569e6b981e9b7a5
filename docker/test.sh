#!/usr/bin/env bash
# Runs the base image and shows what a container promises: PID 1, another user than root, a read-only root, the health check,
# edits that go live on a mounted directory, SIGTERM that drains, the exit code of a critical service.
#
#   ENGINE=FILE     the binary to put into the image, instead of compiling one in it; default target/debug/machinist
#   PODMAN="..."    the command with options of its own; default podman, with runc where there is no crun
#   RUN_ARGS="..."  more arguments of `podman run`
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { echo "docker/test.sh: skipped: $1"; exit 0; }
command -v buildah >/dev/null || skip "buildah is not installed"
default=podman
command -v crun >/dev/null || default="podman --runtime runc"
read -r -a podman <<<"${PODMAN:-$default}"
command -v "${podman[0]}" >/dev/null || skip "podman is not installed"
# Limits that podman may set where it runs in a container itself.
read -r -a run_args <<<"${RUN_ARGS:---ulimit nofile=1024:4096 --ulimit nproc=1024:1024}"
debian=debian:bookworm-slim
"${podman[@]}" image exists "$debian" || timeout 120 "${podman[@]}" pull --quiet "$debian" >/dev/null 2>&1 || skip "there is no $debian and it cannot be pulled"
"${podman[@]}" run "${run_args[@]}" --rm --network none "$debian" true >/dev/null 2>&1 || skip "podman cannot run a container here"

engine=${ENGINE:-${CARGO_TARGET_DIR:-target}/debug/machinist}
name=machinist-test-$$
image=localhost/machinist-test-base:$$
work=$(mktemp -d)
finish() {
    code=$?
    if [ $code -ne 0 ]; then "${podman[@]}" logs "$name" 2>&1 | tail -30 >&2 || true; fi
    "${podman[@]}" rm -f -v "$name" >/dev/null 2>&1 || true
    "${podman[@]}" volume rm "$name" >/dev/null 2>&1 || true
    "${podman[@]}" rmi "$image" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT
fail() { echo "docker/test.sh: $1" >&2; exit 1; }
until_true() { # until_true WHAT COMMAND...
    local what=$1 deadline=$((SECONDS + 60)); shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "$what: not within 60 s"
        sleep 0.2
    done
    echo "ok: $what"
}
inside() { "${podman[@]}" exec "$name" "$@"; }
# The health check is asked for by hand: without systemd podman has no timer for it.
run() { # run MACHINE [podman run's arguments...]
    local machine=$1; shift
    "${podman[@]}" run "${run_args[@]}" --name "$name" --network none --health-interval disable --read-only --cap-drop all --security-opt no-new-privileges \
        -e MACHINIST_TOKEN=test -v "$name:/var/lib/machinist" -v "$work/$machine:/machines/$machine:ro" "$@" "$image" "/machines/$machine"
}

pid() { # pid SERVICE
    inside machinist --json services list |
        python3 -c 'import json, sys; print(next(s["pid"] for s in json.load(sys.stdin)["services"] if s["name"] == sys.argv[1]))' "$1"
}

mkdir -p "$work/busy" "$work/broken"
cat >"$work/busy/machine.toml" <<'TOML'
[shutdown]
grace = "30s"
[connectors.command.vars.programs]
slow = ["sleep"]
TOML
cat >"$work/busy/machine.rhai" <<'RHAI'
fn services(m) { [
    #{ name: "kept", command: ["sleep", "100000"] },
    #{ name: "edited", command: ["sleep", "100001"] },
] }
fn workers(m) { [ #{ name: "w", connector: "command", slots: 1 } ] }
RHAI
cat >"$work/broken/machine.rhai" <<'RHAI'
fn services(m) { [
    #{ name: "important", command: ["sh", "-c", "exit 7"], critical: true, restart: "never" },
] }
RHAI
chmod -R a+rX "$work"

echo "== build"
mkdir -p "$work/engine/out"
install -m 0755 "$engine" "$work/engine/out/machinist"
# Debian's buildah does not know --link; a newer one does nothing for it.
sed 's/^COPY --link /COPY /' docker/Dockerfile >"$work/Dockerfile"
# Isolation by chroot and not by a container: this may run in one.
buildah bud --isolation chroot --layers --format docker -f "$work/Dockerfile" --target base --build-context "engine=$work/engine" -t "$image" . >"$work/build.log" 2>&1 ||
    { tail -20 "$work/build.log" >&2; fail "the image was not built"; }

echo "== run"
run busy -d >/dev/null
until_true "the health check passes" "${podman[@]}" healthcheck run "$name"
[ "$(inside cat /proc/1/comm)" = machinist ] || fail "PID 1 is $(inside cat /proc/1/comm)"
echo "ok: machinist is PID 1"
inside grep -qE '^Uid:\s+10001\s' /proc/1/status || fail "runs as $(inside grep ^Uid: /proc/1/status)"
echo "ok: it is not root"
if inside touch /usr/local/bin/x 2>/dev/null; then fail "the root can be written"; fi
echo "ok: its root is read-only"

runs() { # runs SERVICE WORD: the process of the service has the word on its command line
    inside cat "/proc/$(pid "$1")/cmdline" | tr '\0' '\n' | grep -qx "$2"
}
kept=$(pid kept)
runs edited 100001 || fail "the service to edit does not run"
sed -i 's/100001/100002/' "$work/busy/machine.rhai"
until_true "an edit on the mounted directory goes live" runs edited 100002
[ "$kept" = "$(pid kept)" ] || fail "the edit restarted a service that it did not touch"
echo "ok: and leaves the other service its process"

job=$(inside machinist --json jobs submit command --id drained --payload '{"program": "slow", "args": ["4"]}' 2>&1) || fail "$job"
job_has() { inside machinist --json jobs get drained | grep -q "$1"; }
until_true "a job runs" job_has '"state": "running"'
"${podman[@]}" stop -t 40 "$name" >/dev/null
code=$("${podman[@]}" inspect --format '{{.State.ExitCode}}' "$name")
[ "$code" = 0 ] || fail "exit code $code after SIGTERM"
echo "ok: SIGTERM ends it with 0"
"${podman[@]}" rm "$name" >/dev/null
run busy -d >/dev/null
until_true "the machine is back" job_has '"id"'
job_has '"state": "completed"' && job_has '"attempts": 1,' && job_has '"losses": 0,' || fail "the job was not drained: $(inside machinist --json jobs get drained)"
inside machinist --json jobs get drained | python3 -c '
import json, sys
job = json.load(sys.stdin)
sys.exit(len(job["history"]) != 1)' || fail "the job was run twice"
echo "ok: the running job was finished first"
"${podman[@]}" rm -f "$name" >/dev/null

set +e
timeout 120 "${podman[@]}" run "${run_args[@]}" --rm --name "$name" --network none --health-interval disable -v "$work/broken:/machines/broken:ro" "$image" /machines/broken >"$work/log" 2>&1
code=$?
set -e
[ $code = 7 ] || { cat "$work/log" >&2; fail "exit code $code where the critical service had 7"; }
echo "ok: the exit code of a critical service is the container's"
