#!/bin/sh
# check.sh: everything that can be said of the chart without a cluster, by each tool that is on the path: helm 3 and 4
# (lint), helm-unittest, kubeconform (schemas in $MOESH_K8S_SCHEMAS), kube-score. Names the tools that it did not find.
set -eu
cd "$(dirname "$0")"
missing=""
has() { command -v "$1" >/dev/null || { missing="$missing $1"; return 1; }; }

helm=""
for program in helm3 helm4; do
  if has $program; then
    helm=$program
    for values in moesh/values.yaml moesh/ci/*.yaml; do $program lint --strict --quiet moesh -f "$values"; done
  fi
done
if has helm-unittest; then helm-unittest -f 'tests/*_test.yaml' moesh; fi
if [ -n "$helm" ] && has kubeconform && [ -d "${MOESH_K8S_SCHEMAS:-}" ]; then
  for version in 1.29.6 1.37.2; do
    for values in moesh/values.yaml moesh/ci/*.yaml; do
      # cert-manager's own kinds have no schema here.
      $helm template moesh moesh --kube-version $version -f "$values" | kubeconform -strict -summary -skip Certificate,Issuer \
        -kubernetes-version $version \
        -schema-location "$MOESH_K8S_SCHEMAS/{{.NormalizedKubernetesVersion}}-standalone{{.StrictSuffix}}/{{.ResourceKind}}{{.KindSuffix}}.json"
    done
  done
fi
if [ -n "$helm" ] && has kube-score; then
  # Exit status 1 is for critical findings.
  $helm template moesh moesh --kube-version 1.37.2 | kube-score score --output-format ci - | grep -Ev '^\[(OK|SKIPPED)\]' || true
  $helm template moesh moesh --kube-version 1.37.2 | kube-score score - >/dev/null
fi
[ -z "$missing" ] || echo "not found, so not checked:$missing" >&2
