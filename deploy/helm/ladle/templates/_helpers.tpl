{{- define "ladle.name" -}}
{{- $name := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) -}}
{{- $name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "ladle.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ladle.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "ladle.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "ladle.keys" -}}
{{- if .Values.keys.existingSecret }}{{ .Values.keys.existingSecret }}{{ else if .Values.keys.toml }}{{ include "ladle.name" . }}-keys{{ end }}
{{- end }}

{{- /* The configuration file of the server. */ -}}
{{- define "ladle.config" -}}
metrics_addr = "0.0.0.0:9464"
drain_timeout = {{ int .Values.drainSeconds }}
{{- if and (ne .Values.soup.source "image") .Values.soup.base }}
base = {{ printf "/soup/%s" .Values.soup.base | toJson }}
{{- end }}
{{- if include "ladle.keys" . }}
named_keys = "/etc/ladle/keys/keys.toml"
{{- end }}
{{- range $name, $value := merge (deepCopy .Values.options) (dict "log_format" "json") }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{- end }}
