{{- /* What several templates decide from the values, decided once. */ -}}

{{- /* The groups with the defaults filled in, as YAML: {name: {...}}. A list of a group replaces the default one. */ -}}
{{- define "moesh.groups" -}}
{{- $groups := dict -}}
{{- range $name, $own := .Values.experts -}}
{{- if not (kindIs "invalid" $own) -}}
{{- $_ := set $groups $name (mergeOverwrite (deepCopy $.Values.expertDefaults) (deepCopy $own)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $groups -}}
{{- end -}}

{{- /* "true" if the leader scales any group. */ -}}
{{- define "moesh.autoscales" -}}
{{- range $name, $group := include "moesh.groups" . | fromYaml -}}
{{- if $group.autoscale.enabled }}true{{ end -}}
{{- end -}}
{{- end -}}

{{- /* "true" if coordinators talk to the API server. */ -}}
{{- define "moesh.coordinatorUsesApi" -}}
{{- if or .Values.hints.enabled (include "moesh.autoscales" .) }}true{{ end -}}
{{- end -}}

{{- define "moesh.zoneFrom" -}}
{{- if eq .Values.zoneFrom "auto" -}}
{{- ternary "podLabel" "nodeLabel" (semverCompare ">=1.35.0-0" .Capabilities.KubeVersion.Version) -}}
{{- else -}}
{{ .Values.zoneFrom }}
{{- end -}}
{{- end -}}

{{- /* Where certificates come from: "none", "cert-manager", "chart" or "existing". A release whose authority the chart
has made stays with it when cert-manager is installed later: changing authorities is a decision. */ -}}
{{- define "moesh.tls.mode" -}}
{{- $own := lookup "v1" "Secret" .Release.Namespace (printf "%s-ca" (include "moesh.fullname" .)) -}}
{{- if not .Values.tls.enabled -}}
none
{{- else if ne .Values.tls.mode "auto" -}}
{{ .Values.tls.mode }}
{{- else if and $own (hasKey (default dict $own.metadata.annotations) "moesh.dev/authority") -}}
chart
{{- else if .Capabilities.APIVersions.Has "cert-manager.io/v1" -}}
cert-manager
{{- else -}}
chart
{{- end -}}
{{- end -}}

{{- /* A list: root, role (coordinator, expert, client, redis). */ -}}
{{- define "moesh.tls.secret" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- if eq (include "moesh.tls.mode" $root) "existing" -}}
{{ required (printf "tls.existing.%s must name a secret, because tls.mode is \"existing\"" $role) (index $root.Values.tls.existing $role) }}
{{- else -}}
{{ include "moesh.fullname" $root }}-{{ $role }}-tls
{{- end -}}
{{- end -}}

{{- /* A list: root, role. DNS names of the certificate, a JSON list. Peers go by the first; the others are for clients
that know a host name, and for Redis, which is checked by its host name. */ -}}
{{- define "moesh.tls.names" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $names := list (printf "%s.moesh.internal" $role) -}}
{{- $services := list -}}
{{- if eq $role "coordinator" -}}
{{- $services = list (include "moesh.fullname" $root) (include "moesh.coordinator.name" $root) -}}
{{- else if eq $role "redis" -}}
{{- $services = list (include "moesh.redis.name" $root) -}}
{{- end -}}
{{- range $service := $services -}}
{{- $names = concat $names (list $service (printf "%s.%s" $service $root.Release.Namespace) (printf "%s.%s.svc" $service $root.Release.Namespace) (printf "%s.%s.svc.cluster.local" $service $root.Release.Namespace)) -}}
{{- end -}}
{{- if $services }}{{ $names = append $names "localhost" }}{{ end -}}
{{- if eq $role "coordinator" }}{{ $names = concat $names $root.Values.tls.extraNames }}{{ end -}}
{{- $names | uniq | toJson -}}
{{- end -}}

{{- /* The roles that need a certificate, a JSON list. */ -}}
{{- define "moesh.tls.roles" -}}
{{- $roles := list "coordinator" "expert" "client" -}}
{{- if .Values.redis.bundled }}{{ $roles = append $roles "redis" }}{{ end -}}
{{- $roles | toJson -}}
{{- end -}}

{{- /* Replicas for a workload: the live count, if there is one and the wanted one has not changed since, so that
`kubectl scale` and autoscalers are not undone by an upgrade. A dict: root, kind, name, wanted, scaled (by others). */ -}}
{{- define "moesh.replicas" -}}
{{- $live := lookup "apps/v1" .kind .root.Release.Namespace .name -}}
{{- $before := "" -}}
{{- if $live }}{{ $before = dig "annotations" "moesh.dev/replicas" "" $live.metadata }}{{ end -}}
{{- if and $live (or .scaled (eq $before (toString .wanted))) -}}
{{ int $live.spec.replicas }}
{{- else -}}
{{ int .wanted }}
{{- end -}}
{{- end -}}

{{- /* Directory of the pack in the container. */ -}}
{{- define "moesh.model.directory" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "demo" -}}
/app/models/tales-moe
{{- else -}}
{{ printf "/model/%s" $model.path | trimSuffix "/" }}
{{- end -}}
{{- end -}}

{{- /* What the schema can't say. */ -}}
{{- define "moesh.check" -}}
{{- $model := .Values.model -}}
{{- if and (eq $model.source "pvc") (not $model.claim) }}{{ fail "model.claim must name a claim, because model.source is \"pvc\"" }}{{ end -}}
{{- if and (eq $model.source "hostPath") (not $model.hostPath) }}{{ fail "model.hostPath must name a directory, because model.source is \"hostPath\"" }}{{ end -}}
{{- if contains ".." $model.path }}{{ fail "model.path must stay below the volume" }}{{ end -}}
{{- if and (not .Values.redis.bundled) (not .Values.redis.external.url) (not .Values.redis.external.existingSecret) }}{{ fail "redis.external.url or redis.external.existingSecret must be set, because redis.bundled is false" }}{{ end -}}
{{- $strategy := .Values.coordinator.strategy -}}
{{- if and (eq (toString $strategy.maxSurge) "0") (eq (toString $strategy.maxUnavailable) "0") }}{{ fail "coordinator.strategy: maxSurge and maxUnavailable can't both be 0" }}{{ end -}}
{{- $hpa := .Values.coordinator.hpa -}}
{{- if lt (int $hpa.maxReplicas) (int $hpa.minReplicas) }}{{ fail "coordinator.hpa: maxReplicas is less than minReplicas" }}{{ end -}}
{{- if has (int .Values.metrics.port) (list 50051 50052) }}{{ fail "metrics.port is taken: 50051 serves gRPC, 50052 health" }}{{ end -}}
{{- if ge (float64 .Values.autoscaler.busyLow) (float64 .Values.autoscaler.busyHigh) }}{{ fail "autoscaler.busyLow must be less than busyHigh" }}{{ end -}}
{{- range $name, $group := include "moesh.groups" . | fromYaml -}}
{{- if and $group.hpa.enabled $group.autoscale.enabled }}{{ fail (printf "experts.%s: hpa and autoscale exclude each other, two would scale one group" $name) }}{{ end -}}
{{- range $key := list "hpa" "autoscale" -}}
{{- $bounds := index $group $key -}}
{{- if lt (int $bounds.maxReplicas) (int $bounds.minReplicas) }}{{ fail (printf "experts.%s.%s: maxReplicas is less than minReplicas" $name $key) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
