{{- define "consentgate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- /* 52 characters leave room for what is appended: a Job's pods are labelled with its name. */ -}}
{{- define "consentgate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "consentgate.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "consentgate.selectorLabels" -}}
app.kubernetes.io/name: {{ include "consentgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "consentgate.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{ include "consentgate.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "consentgate.workerLabels" -}}
{{ include "consentgate.selectorLabels" . }}
app.kubernetes.io/component: worker
{{- end }}

{{- define "consentgate.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "consentgate.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "consentgate.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{- define "consentgate.bootstrapServers" -}}
{{- required "config.kafka: say where your Kafka is, such as bootstrap.servers: kafka-1:9092,kafka-2:9092" (index .Values.config.kafka "bootstrap.servers") -}}
{{- end }}

{{- /* The keys of the ConfigMap: the configuration, and the policy where there is one. */ -}}
{{- define "consentgate.files" -}}
{{- $_ := include "consentgate.bootstrapServers" . -}}
{{- $config := deepCopy .Values.config -}}
{{- if .Values.policyFile -}}
{{- $_ := set $config "policy" "/etc/consentgate/policy.yaml" -}}
{{- end -}}
{{- if .Values.snapshot.enabled -}}
{{- $_ := set $config "snapshot" "/var/lib/consentgate/snapshots" -}}
{{- end -}}
consentgate.yaml: |
  {{- toYaml $config | nindent 2 }}
{{- if .Values.policyFile }}
policy.yaml: |
  {{- .Values.policyFile | nindent 2 }}
{{- end }}
{{- end }}

{{- define "consentgate.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
# The group that may read the mounted Secrets and write to the volume of snapshots.
fsGroup: {{ int64 . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "consentgate.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "consentgate.env" -}}
{{- range $secret := .Values.secrets }}
{{- range $setting, $key := $secret.settings }}
- name: CONSENTGATE_KAFKA__{{ $setting | trimPrefix "kafka." | replace "." "_" | upper }}_FILE
  value: /run/secrets/{{ $secret.name }}/{{ $key }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "consentgate.volumeMounts" -}}
- name: config
  mountPath: /etc/consentgate
  readOnly: true
{{- range .Values.secrets }}
- name: secret-{{ .name }}
  mountPath: /run/secrets/{{ .name }}
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "consentgate.volumes" -}}
{{- range .Values.secrets }}
- name: secret-{{ .name }}
  secret:
    secretName: {{ .name }}
    # For the group, which is that of the pod.
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "consentgate.kafkaPorts" -}}
{{- $ports := .Values.networkPolicy.kafkaPorts -}}
{{- if not $ports -}}
{{- range splitList "," (include "consentgate.bootstrapServers" .) -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" (trim .) | trimPrefix ":" | default "9092" | int) -}}
{{- end -}}
{{- end -}}
{{- range uniq $ports }}
- port: {{ int . }}
  protocol: TCP
{{- end }}
{{- end }}
