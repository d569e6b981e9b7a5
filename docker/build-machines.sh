#!/usr/bin/env bash
# Builds the images of machines with docker or buildah and says of each how long it took, how large it is, and how many of
# its bytes and steps an earlier build had already made.
#
#   docker/build-machines.sh [IMAGE...]     base, api, gpu, hybrid (all four without arguments), dev
#
# BUILDER=docker|buildah   which program; default: docker where it answers, else buildah
# PREFIX, VERSION          images are named PREFIX-IMAGE:VERSION; default machinist-IMAGE:dev
# ENGINE=FILE              puts this binary in instead of compiling one
# BUILD_ARGS="..."         more arguments for the build, for instance --build-arg COMFYUI=v0.3.64
set -euo pipefail
cd "$(dirname "$0")/.."

images=("$@")
[ ${#images[@]} -gt 0 ] || images=(base api gpu hybrid)
prefix=${PREFIX:-machinist}
version=${VERSION:-dev}
builder=${BUILDER:-}
if [ -z "$builder" ]; then
    if docker info >/dev/null 2>&1; then builder=docker
    elif command -v buildah >/dev/null; then builder=buildah
    else echo "build-machines.sh: neither docker nor buildah is here" >&2; exit 1
    fi
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)")
if [ -n "${ENGINE:-}" ]; then
    install -D -m 0755 "$ENGINE" "$work/engine/out/machinist"
    arguments+=(--build-context "engine=$work/engine")
fi
# Debian's buildah does not know --link; a newer one does nothing for it.
sed 's/^COPY --link /COPY /' docker/Dockerfile >"$work/Dockerfile"
read -r -a more <<<"${BUILD_ARGS:-}"

build() { # build IMAGE LOG
    if [ "$builder" = docker ]; then
        docker buildx build --progress plain --load -f docker/Dockerfile --target "$1" -t "$prefix-$1:$version" "${arguments[@]}" "${more[@]}" . >"$2" 2>&1
    else
        # The format of Docker has the health check; that of OCI has not.
        buildah bud --layers --format docker -f "$work/Dockerfile" --target "$1" -t "$prefix-$1:$version" "${arguments[@]}" "${more[@]}" . >"$2" 2>&1
    fi
}

# The layers of an image as `digest bytes`, bytes as unpacked.
layers() { # layers IMAGE
    local archive="$work/image.tar"
    if [ "$builder" = docker ]; then docker save -o "$archive" "$1"; else
        rm -f "$archive"; buildah push --quiet "$1" "docker-archive:$archive" >/dev/null
    fi
    python3 - "$archive" <<'PYTHON'
import json, sys, tarfile
with tarfile.open(sys.argv[1]) as archive:
    manifest = json.load(archive.extractfile("manifest.json"))[0]
    config = json.load(archive.extractfile(manifest["Config"]))
    for digest, name in zip(config["rootfs"]["diff_ids"], manifest["Layers"]):
        member = archive.getmember(name)
        while member.issym() or member.islnk():
            member = archive.getmember(member.linkname.removeprefix("../"))
        print(digest, member.size)
PYTHON
}

touch "$work/before"
for image in base api gpu hybrid dev; do
    layers "$prefix-$image:$version" >>"$work/before" 2>/dev/null || true
done

printf '%-8s %8s %12s %12s %8s %14s\n' image seconds MB "MB reused" reused "steps reused"
for image in "${images[@]}"; do
    start=$(date +%s.%N)
    if ! build "$image" "$work/log"; then
        tail -40 "$work/log" >&2
        echo "build-machines.sh: $image was not built" >&2
        exit 1
    fi
    end=$(date +%s.%N)
    if [ "$builder" = docker ]; then
        steps=$(grep -cE '^#[0-9]+ \[.*[0-9]+/[0-9]+\]' "$work/log" || true); cached=$(grep -cE '^#[0-9]+ CACHED' "$work/log" || true)
    else
        steps=$(grep -cE '^(\[[0-9/]+\] )?STEP [0-9]+/[0-9]+: [A-EG-Z]' "$work/log" || true); cached=$(grep -c -- '--> Using cache' "$work/log" || true)
    fi
    layers "$prefix-$image:$version" >"$work/after"
    awk -v image="$image" -v seconds="$(awk "BEGIN { print $end - $start }")" -v steps="$cached of $steps" '
        FILENAME == ARGV[1] { had[$1] = 1; next }
        { total += $2; if ($1 in had) reused += $2 }
        END { printf "%-8s %8.1f %12.2f %12.2f %7.1f%% %14s\n", image, seconds, total / 1e6, reused / 1e6, total ? 100 * reused / total : 0, steps }
    ' "$work/before" "$work/after"
    cat "$work/after" >>"$work/before"
    cat "$work/after" >>"$work/all"
done
awk '{ each += $2; if (!($1 in seen)) { seen[$1] = 1; shared += $2 } }
    END { printf "together %.2f MB, kept once %.2f MB: %.1f%% less\n", each / 1e6, shared / 1e6, 100 * (1 - shared / each) }' "$work/all"
