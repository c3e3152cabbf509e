#!/usr/bin/env bash
# Does what the README says, as somebody new to the project would: in a fresh clone, with an empty
# HOME and a PATH of only the system's directories. The commands are those of the README's block
# that is marked for this script.
#
#   tests/acceptance/readme.sh [--tests-have-run]
#
# With --tests-have-run, `make test` is passed over: CI has just run it.
#
# What counts: every command ends with 0, no process of theirs is left, nothing is left in the
# directory for temporary files, and the clone is as clean as it was.
set -euo pipefail

repository=$(cd "$(dirname "$0")/../.." && pwd)
tests_have_run=no
case "${1-}" in
--tests-have-run) tests_have_run=yes ;;
"") ;;
*)
    echo "usage: $0 [--tests-have-run]" >&2
    exit 2
    ;;
esac

work=$(mktemp -d "${TMPDIR:-/tmp}/readme.XXXXXX")
work=$(cd "$work" && pwd -P)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
clone=$work/clone
mkdir "$work/home" "$work/tmp"

fail() {
    echo "readme.sh: $*" >&2
    exit 1
}

# Only what it takes to reach the package registries is kept of the environment.
environment=(HOME="$work/home" PATH=/usr/bin:/bin TMPDIR="$work/tmp" LANG=C.UTF-8)
for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy \
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE PIP_CERT PIP_INDEX_URL; do
    if [ -n "${!name-}" ]; then
        environment+=("$name=${!name}")
    fi
done

commands() {
    awk '/^<!-- tests\/acceptance\/readme.sh runs/ {marked = 1}
         marked && /^```$/ {exit}
         inside && NF {print}
         marked && /^```sh$/ {inside = 1}' "$clone/README.md"
}

# The processes that were started from here and are still there, one a line.
left_behind() {
    local process
    if [ -d /proc/self ]; then
        for process in /proc/[0-9]*; do
            if tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qxF "HOME=$work/home"; then
                echo "${process#/proc/} $(tr '\0' ' ' 2>/dev/null <"$process/cmdline" || true)"
            fi
        done
    else
        ps -Aww -o pid= -o args= | awk -v directory="$work/" 'index($0, directory) && !/awk/'
    fi
}

expect_nothing_left() {
    local found
    for _ in 1 2 3 4 5; do
        found=$(left_behind)
        if [ -z "$found" ]; then
            break
        fi
        sleep 1
    done
    [ -z "$found" ] || fail "'$1' left processes behind:"$'\n'"$found"
    # pytest keeps the directories of its last runs, so that one can look into them.
    found=$(find "$work/tmp" -mindepth 1 -maxdepth 1 ! -name 'pytest-of-*')
    [ -z "$found" ] || fail "'$1' left temporary files behind: $found"
    found=$(git -C "$clone" status --porcelain)
    [ -z "$found" ] || fail "'$1' left files in the clone:"$'\n'"$found"
}

if [ -n "$(git -C "$repository" status --porcelain)" ]; then
    echo "readme.sh: note: what is not committed is not part of the clone" >&2
fi
git clone --quiet --no-local "$repository" "$clone"

to_run=()
while read -r command; do
    to_run+=("$command")
done < <(commands)
[ "${#to_run[@]}" -eq 2 ] || fail "README.md should have two commands, but has: ${to_run[*]-none}"

for command in "${to_run[@]}"; do
    if [ "$command" = "make test" ] && [ "$tests_have_run" = yes ]; then
        continue
    fi
    echo "readme.sh: \$ $command"
    started=$SECONDS
    (cd "$clone" && env -i "${environment[@]}" /bin/sh -c "$command" </dev/null) ||
        fail "'$command' ended with $?"
    expect_nothing_left "$command"
    echo "readme.sh: '$command' took $((SECONDS - started)) s"
done
echo "readme.sh: the README holds"
