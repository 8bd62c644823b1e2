{{- /* Names and labels. */ -}}

{{- define "moesh.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* 40 characters leave room for "-expert-" and a group's name (at most 12) below the limit of 63 that a StatefulSet's
pods, with their revision label, must keep. */ -}}
{{- define "moesh.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 32 | trimSuffix "-" -}}
{{- else if contains (include "moesh.name" .) .Release.Name -}}
{{- .Release.Name | trunc 32 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "moesh.name" .) | trunc 32 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "moesh.coordinator.name" -}}{{ include "moesh.fullname" . }}-coordinator{{- end -}}
{{- define "moesh.redis.name" -}}{{ include "moesh.fullname" . }}-redis{{- end -}}

{{- /* A list: root, group's name. */ -}}
{{- define "moesh.expert.name" -}}
{{ include "moesh.fullname" (index . 0) }}-expert-{{ index . 1 }}
{{- end -}}

{{- define "moesh.selectorLabels" -}}
app.kubernetes.io/name: {{ include "moesh.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "moesh.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "moesh.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: moesh
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- /* A list: root, component. */ -}}
{{- define "moesh.componentSelector" -}}
{{ include "moesh.selectorLabels" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- /* Of pods: what changes with every chart would restart them for nothing. A list: root, component. */ -}}
{{- define "moesh.podLabels" -}}
{{ include "moesh.componentSelector" . }}
app.kubernetes.io/part-of: moesh
{{- end -}}

{{- define "moesh.componentLabels" -}}
{{ include "moesh.labels" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- /* A list: root, component. */ -}}
{{- define "moesh.serviceAccountName" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.serviceAccount.create -}}
{{ include "moesh.fullname" $root }}-{{ index . 1 }}
{{- else -}}
{{ default "default" $root.Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- /* A list: values of an image, default tag. */ -}}
{{- define "moesh.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ index . 1 }}
{{- end -}}
{{- end -}}
