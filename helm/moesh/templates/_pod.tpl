{{- /* Pieces of the pods that run moesh. */ -}}

{{- define "moesh.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.podUser.id }}
runAsGroup: {{ .Values.podUser.groupId }}
fsGroup: {{ .Values.podUser.groupId }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "moesh.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: {{ .Values.podUser.id }}
runAsGroup: {{ .Values.podUser.groupId }}
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "moesh.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Environment of every process: who it is, whom it talks to. The id is left to the process (pod name and a random
suffix): a pod that is deleted by force may still run when its successor of the same name starts. */ -}}
{{- define "moesh.env" -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: MOESH_GRPC
  value: 0.0.0.0:50051
- name: MOESH_ADVERTISE
  value: $(POD_IP):50051
- name: MOESH_HEALTH
  value: 0.0.0.0:50052
{{- if .Values.metrics.enabled }}
- name: MOESH_METRICS_LISTEN
  value: 0.0.0.0:{{ .Values.metrics.port }}
{{- end }}
- name: MOESH_CLUSTER
  value: {{ default (include "moesh.fullname" .) .Values.clusterName | quote }}
- name: MOESH_LEASE
  value: {{ .Values.leaseSeconds | quote }}
- name: MOESH_LOG_LEVEL
  value: {{ .Values.log.level }}
- name: MOESH_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- include "moesh.zoneEnv" . }}
{{- include "moesh.storeEnv" . }}
{{- include "moesh.tlsEnv" . }}
{{- end -}}

{{- define "moesh.zoneEnv" -}}
{{- $from := include "moesh.zoneFrom" . -}}
{{- if eq $from "podLabel" }}
- name: MOESH_ZONE
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['topology.kubernetes.io/zone']"}}
{{- else if eq $from "nodeLabel" }}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: MOESH_ZONE
  value: kubernetes://$(NODE_NAME)
{{- end }}
{{- end -}}

{{- define "moesh.storeEnv" -}}
{{- $redis := .Values.redis }}
{{- if $redis.bundled }}
- name: REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ default (include "moesh.redis.name" .) $redis.existingSecret }}, key: password}}
- name: MOESH_STORE
  value: {{ ternary "rediss" "redis" .Values.tls.enabled }}://:$(REDIS_PASSWORD)@{{ include "moesh.redis.name" . }}:6379
{{- else if $redis.external.existingSecret }}
- name: MOESH_STORE
  valueFrom: {secretKeyRef: {name: {{ $redis.external.existingSecret }}, key: url}}
{{- else }}
- name: MOESH_STORE
  value: {{ $redis.external.url | quote }}
{{- end }}
{{- if and (not $redis.bundled) $redis.external.caSecret }}
- name: NODE_EXTRA_CA_CERTS
  value: /redis-ca/ca.crt
{{- end }}
{{- end -}}

{{- define "moesh.tlsEnv" -}}
{{- if .Values.tls.enabled }}
- name: MOESH_TLS_CERT
  value: /tls/tls.crt
- name: MOESH_TLS_KEY
  value: /tls/tls.key
- name: MOESH_TLS_CA
  value: /tls/ca.crt
{{- else }}
- name: MOESH_INSECURE
  value: "true"
{{- end }}
{{- end -}}

{{- define "moesh.ports" -}}
- name: grpc
  containerPort: 50051
  protocol: TCP
- name: health
  containerPort: 50052
  protocol: TCP
{{- if .Values.metrics.enabled }}
- name: metrics
  containerPort: {{ .Values.metrics.port }}
  protocol: TCP
{{- end }}
{{- end -}}

{{- /* What a Prometheus that looks for pods goes by. */ -}}
{{- define "moesh.metricsAnnotations" -}}
{{- if .Values.metrics.enabled -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .Values.metrics.port | quote }}
prometheus.io/path: /metrics
{{- end -}}
{{- end -}}

{{- /* Start-up gives a slow machine time; liveness then only asks whether the event loop answers; readiness whether
it can serve. */ -}}
{{- define "moesh.probes" -}}
startupProbe:
  grpc: {port: 50052, service: liveness}
  {{- toYaml .Values.probes.startup | nindent 2 }}
livenessProbe:
  grpc: {port: 50052, service: liveness}
  {{- toYaml .Values.probes.liveness | nindent 2 }}
readinessProbe:
  grpc: {port: 50052}
  {{- toYaml .Values.probes.readiness | nindent 2 }}
{{- end -}}

{{- /* A list: root, mounts the model (bool). */ -}}
{{- define "moesh.volumeMounts" -}}
{{- $root := index . 0 -}}
- name: cache
  mountPath: /cache
- name: tmp
  mountPath: /tmp
{{- if $root.Values.tls.enabled }}
- name: tls
  mountPath: /tls
  readOnly: true
{{- end }}
{{- if and (index . 1) (ne $root.Values.model.source "demo") }}
- name: model
  mountPath: /model
  readOnly: true
{{- end }}
{{- if and (not $root.Values.redis.bundled) $root.Values.redis.external.caSecret }}
- name: redis-ca
  mountPath: /redis-ca
  readOnly: true
{{- end }}
{{- end -}}

{{- /* All but the cache. A list: root, role, mounts the model (bool). */ -}}
{{- define "moesh.volumes" -}}
{{- $root := index . 0 -}}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{- if $root.Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ include "moesh.tls.secret" (list $root (index . 1)) }}
    defaultMode: 0440
    items:
      - {key: tls.crt, path: tls.crt}
      - {key: tls.key, path: tls.key}
      - {key: ca.crt, path: ca.crt}
{{- end }}
{{- if index . 2 }}
{{- if eq $root.Values.model.source "pvc" }}
- name: model
  persistentVolumeClaim:
    claimName: {{ $root.Values.model.claim }}
    readOnly: true
{{- else if eq $root.Values.model.source "hostPath" }}
- name: model
  hostPath:
    path: {{ $root.Values.model.hostPath }}
    type: Directory
{{- end }}
{{- end }}
{{- if and (not $root.Values.redis.bundled) $root.Values.redis.external.caSecret }}
- name: redis-ca
  secret:
    secretName: {{ $root.Values.redis.external.caSecret }}
    defaultMode: 0440
    items:
      - {key: ca.crt, path: ca.crt}
{{- end }}
{{- end -}}

{{- /* A list: selector labels as YAML, how strictly. */ -}}
{{- define "moesh.spread" -}}
{{- if index . 1 }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: {{ index $ 1 }}
    labelSelector:
      matchLabels:
        {{- index $ 0 | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* The keys that coordinators, groups and Redis share. */ -}}
{{- define "moesh.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- /* Goes on serving until the Service has forgotten the pod. The hook that needs no process exists since 1.30. */ -}}
{{- define "moesh.preStopSleep" -}}
{{- $seconds := int (index . 1) -}}
{{- if $seconds }}
lifecycle:
  preStop:
    {{- if semverCompare ">=1.30.0-0" (index . 0).Capabilities.KubeVersion.Version }}
    sleep: {seconds: {{ $seconds }}}
    {{- else }}
    exec: {command: [node, -e, "setTimeout(() => {}, {{ mul $seconds 1000 }})"]}
    {{- end }}
{{- end }}
{{- end -}}
