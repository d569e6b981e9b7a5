#!/usr/bin/env bash
# Runs all tests; installs what they need from the distribution when it is missing. Arguments go to the test runner.
set -euo pipefail
cd "$(dirname "$0")"

install() { # install PROGRAM PACKAGE
    command -v "$1" >/dev/null && return
    echo "test.sh: installing $2 for $1"
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    [ -n "${apt_updated:-}" ] || $sudo apt-get update -qq
    apt_updated=1
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}
install cc gcc
install promtool prometheus
install redis-server redis-server
install git git
install openssl openssl
install python3 python3
python3 -c 'import ensurepip, venv' 2>/dev/null || install no-such-program-but-python3-venv python3-venv

/usr/bin/python3 -c 'import redis' 2>/dev/null || install no-such-program-but-python3-redis python3-redis
install node nodejs
NODE_PATH=/usr/share/nodejs node -e 'require("redis")' 2>/dev/null || install no-such-program-but-node-redis node-redis

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --no-fail-fast "$@"
else
    cargo test --no-fail-fast "$@"
fi
