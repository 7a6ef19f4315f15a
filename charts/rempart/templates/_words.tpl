{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{/* Labels of everything in the chart; call with (dict "root" $ "component" "router"). */}}
{{- define "rempart.labels" -}}
{{ include "rempart.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "rempart.selector" -}}
app.kubernetes.io/name: rempart
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "rempart.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "rempart.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "rempart.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "rempart.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "rempart.apiKeysSecret" -}}
{{- .Values.apiKeys.existingSecret | default "rempart-api-keys" -}}
{{- end }}

{{/* The router's configuration, protobuf JSON of proto/router/v1/config.proto. */}}
{{- define "rempart.routerConfig" -}}
{{- $tls := dict "caFile" "/etc/rempart/tls/ca.crt" "certificateFile" "/etc/rempart/tls/tls.crt" "keyFile" "/etc/rempart/tls/tls.key" }}
{{- $config := dict
  "httpAddress" "0.0.0.0:8080"
  "healthAddress" "127.0.0.1:9091"
  "topologyAddress" (printf "rempart-operator.%s.svc.cluster.local:7080" .Release.Namespace)
  "topologyTls" (merge (dict "peerName" "rempart-operator") $tls)
  "workerTls" (merge (dict "peerName" "rempart-worker") $tls)
  "apiKeysFile" "/etc/rempart/keys/keys"
  "limits" (dict "drainDelayMs" 3000) }}
{{- $config | toPrettyJson }}
{{- end }}
