#!/usr/bin/env bash
# metrics-server.sh KIT: starts the kit's metrics-server unless it runs. The kit starts it with a resolution that is not
# longer than the default time a kubelet may take, which metrics-server refuses; without it no HPA sees CPU, and no
# namespace can be deleted.
set -euo pipefail
source "$1/env.sh"
pid=$(cat "$STATE/pids/metrics-server" 2>/dev/null || echo 0)
if [ ! -x "$BIN/metrics-server" ] || tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$BIN/metrics-server"; then exit 0; fi
P=$STATE/pki
setsid nsenter --net=/run/netns/$NETNS -- "$BIN/metrics-server" --kubeconfig="$P/admin.conf" \
  --authentication-kubeconfig="$P/admin.conf" --authorization-kubeconfig="$P/admin.conf" \
  --bind-address=$NODE_IP --secure-port=4443 --tls-cert-file="$P/addons.crt" --tls-private-key-file="$P/addons.key" \
  --kubelet-certificate-authority="$P/ca.crt" --kubelet-client-certificate="$P/apiserver-kubelet-client.crt" \
  --kubelet-client-key="$P/apiserver-kubelet-client.key" --kubelet-preferred-address-types=InternalIP \
  --metric-resolution=10s --kubelet-request-timeout=5s >"$LOGS/metrics-server.log" 2>&1 </dev/null &
echo $! >"$STATE/pids/metrics-server"
kubectl wait --for=condition=Available apiservice/v1beta1.metrics.k8s.io --timeout=60s >/dev/null
