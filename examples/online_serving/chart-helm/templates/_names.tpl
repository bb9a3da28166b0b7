{{- define "core.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "core.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "core.labels" -}}
{{ include "core.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "core.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end }}

{{- define "core.secretName" -}}
{{ .Values.existingSecret | default (printf "%s-secret" (include "core.name" .)) }}
{{- end }}

{{- /* Where the model comes from, where it lies, and what core serve is given. */}}
{{- define "core.source" -}}
{{ .Values.extraInit.s3modelpath | default .Values.model }}
{{- end }}

{{- define "core.directory" -}}
/models/{{ include "core.source" . | regexFind "[^:]*$" | trimPrefix "//" | replace "/" "--" }}
{{- end }}

{{- define "core.served" -}}
{{- $source := include "core.source" . -}}
{{- if not .Values.extraInit.enabled }}{{ .Values.model }}
{{- else if hasSuffix ".gguf" $source }}{{ include "core.directory" . }}/{{ base $source }}
{{- else }}{{ include "core.directory" . }}{{ end }}
{{- end }}

{{- define "core.environment" -}}
envFrom:
  - configMapRef:
      name: {{ include "core.name" . }}
  {{- if or .Values.existingSecret (include "core.hasSecret" .) }}
  - secretRef:
      name: {{ include "core.secretName" . }}
  {{- end }}
{{- end }}

{{- define "core.hasSecret" -}}
{{- range $name, $value := .Values.secret }}{{ if $value }}yes{{ end }}{{ end }}
{{- end }}

{{- define "core.mounts" -}}
- {name: models, mountPath: /models}
- {name: cache, mountPath: /home/core/.cache}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "core.volumes" -}}
- name: models
  {{- if .Values.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ .Values.persistence.existingClaim | default (include "core.name" .) }}
  {{- else }}
  emptyDir: {}
  {{- end }}
- name: cache
  emptyDir: {}
- name: tmp
  emptyDir: {}
{{- end }}

{{- define "core.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1001
runAsGroup: 0
fsGroup: 1001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "core.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "core.download" -}}
- name: download
  image: {{ include "core.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [core, download]
  args:
    - {{ include "core.source" . | quote }}
    - --to
    - {{ include "core.directory" . | quote }}
  {{- include "core.environment" . | nindent 2 }}
  resources:
    requests: {cpu: "1", memory: 512Mi}
    limits: {memory: 2Gi}
  securityContext:
    {{- include "core.containerSecurity" . | nindent 4 }}
  volumeMounts:
    {{- include "core.mounts" . | nindent 4 }}
{{- end }}
