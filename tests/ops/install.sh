#!/usr/bin/env bash
# Installs what `make test-ops` needs beside Python: Prometheus with promtool, and Chromium, from
# Debian's packages, and from npm what looks at the web pages. As root, on Debian or Ubuntu.
set -euo pipefail
cd "$(dirname "$0")"

missing=()
for program in prometheus promtool chromium; do
    command -v "$program" >/dev/null || missing+=("$program")
done
if ((${#missing[@]})); then
    echo "Installing ${missing[*]} ..."
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        prometheus chromium >/dev/null
fi

if ! cmp -s package-lock.json node_modules/.installed; then
    echo "Installing what package-lock.json names ..."
    npm ci --silent
    cp package-lock.json node_modules/.installed
fi
