{{- define "slime.selector" -}}
app.kubernetes.io/name: slime-serve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "slime.labels" -}}
{{ include "slime.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | quote }}
{{- end }}

{{- /* Images that wait in the servers' queues on average: the seconds that requests waited, by second. */}}
{{- define "slime.waiting" -}}
sum(rate({__name__=~"nv_inference_queue_duration_us|slime_read_queue_duration_us",namespace="{{ .Release.Namespace }}",pod=~"{{ .Release.Name }}-.+"}[1m])) / 1e6
{{- end }}

{{- define "slime.hardened" -}}
{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
{{- end }}

{{- /* Options of whatever talks to this pod's own server. Its certificate is for the service's name, which leads back. */}}
{{- define "slime.url" -}}
{{- if .Values.tls.secret -}}
["--url", "{{ .Release.Name }}.{{ .Release.Namespace }}.svc:8001", "--tls-ca", "/run/secrets/ca.pem",
{{- if .Values.tls.mutual }} "--tls-cert", "/run/secrets/tls.pem", "--tls-key", "/run/secrets/tls.key",{{ end }} "--admin-key-file", "/run/secrets/admin-key"]
{{- else -}}
["--url", "127.0.0.1:8001", "--admin-key-file", "/run/secrets/admin-key"]
{{- end }}
{{- end }}

{{- define "slime.check" -}}
{{- if eq (empty .Values.store.url) (empty .Values.volume.claim) }}{{ fail "expected one of store.url and volume.claim; set where the repository comes from" }}{{ end }}
{{- if and (not .Values.tls.secret) (not .Values.tls.insecure) }}{{ fail "expected tls.secret, or tls.insecure=true to send images and masks in plain text" }}{{ end }}
{{- if and .Values.tls.secret .Values.tls.insecure }}{{ fail "tls.insecure contradicts tls.secret; leave one of them out" }}{{ end }}
{{- if and .Values.tls.mutual (not .Values.tls.secret) }}{{ fail "tls.mutual needs tls.secret; set it too" }}{{ end }}
{{- if and .Values.store.url (not .Values.adminKey.secret) }}{{ fail "store.url needs adminKey.secret, with which new versions are loaded; set it too" }}{{ end }}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.prometheus) }}{{ fail "autoscaling needs autoscaling.prometheus, the address of a Prometheus; set it too" }}{{ end }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}{{ fail "autoscaling: got minReplicas above maxReplicas; swap them" }}{{ end }}
{{- if lt (int .Values.drain.preStopSeconds) (int .Values.drain.connectionAgeSeconds) }}{{ fail "drain: expected preStopSeconds of connectionAgeSeconds at least, or clients are still connected when a pod stops" }}{{ end }}
{{- end }}
