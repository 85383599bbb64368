{{- define "mirror.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) }}
{{- $name | trunc 45 | trimSuffix "-" }}
{{- end }}

{{- define "mirror.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mirror.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "mirror.selector" . }}
{{- end }}

{{- define "mirror.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "mirror.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "mirror.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The configuration. Other users can write to the root of a volume, so the state is in a folder of the volume. */}}
{{- define "mirror.config" -}}
{{- merge (dict) .Values.config (dict "version" 1 "state" "/var/lib/mirror/state") | toYaml }}
{{- end }}

{{/* Rejects combinations of values that the schema cannot reject. */}}
{{- define "mirror.check" -}}
{{- if not (or .Values.existingConfigMap .Values.config.mirrors) }}
{{- fail "set `config` with the key `mirrors`, or `existingConfigMap`" }}
{{- end }}
{{- if and (gt (int .Values.shards) 1) (eq .Values.kind "Deployment") }}
{{- fail "`shards` needs the kind CronJob or Job" }}
{{- end }}
{{- if and (gt (int .Values.shards) 1) .Values.persistence.enabled (not .Values.persistence.existingClaim) (ne .Values.persistence.accessMode "ReadWriteMany") }}
{{- fail "with several shards, set persistence.accessMode to ReadWriteMany, because all pods use the volume, or persistence.enabled to false" }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (ne .Values.kind "Deployment") }}
{{- fail "`serviceMonitor` needs the kind Deployment" }}
{{- end }}
{{- end }}

{{- define "mirror.podTemplate" -}}
metadata:
  labels:
    {{- include "mirror.selector" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "mirror.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "mirror.serviceAccount" . }}
  automountServiceAccountToken: false
  {{- if ne .Values.kind "Deployment" }}
  restartPolicy: Never
  {{- end }}
  # A run ends within 5 seconds after SIGTERM.
  terminationGracePeriodSeconds: 15
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    # `Always` would let the group write to the state directory, which mirror rejects.
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- range $key := list "imagePullSecrets" "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
  {{- with index $.Values $key }}
  {{ $key }}: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  containers:
    - name: mirror
      image: {{ include "mirror.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - sync
        - /etc/mirror/mirror.yaml
        - --progress=plain
        {{- if eq .Values.kind "Deployment" }}
        - --every={{ .Values.every }}
        - --listen=0.0.0.0:{{ .Values.port }}
        {{- else if gt (int .Values.shards) 1 }}
        - --shard=$(JOB_COMPLETION_INDEX)/{{ .Values.shards }}
        {{- end }}
        {{- with .Values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if or .Values.secretEnv .Values.dockerConfigSecret }}
      env:
        {{- range .Values.secretEnv }}
        - name: {{ .name }}
          valueFrom: {secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}}
        {{- end }}
        {{- if .Values.dockerConfigSecret }}
        - {name: DOCKER_CONFIG, value: /etc/mirror-docker}
        {{- end }}
      {{- end }}
      {{- if eq .Values.kind "Deployment" }}
      ports:
        - {name: http, containerPort: {{ .Values.port }}}
      livenessProbe:
        httpGet: {path: /livez, port: http}
        periodSeconds: 60
        timeoutSeconds: 5
      {{- end }}
      resources: {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: config, mountPath: /etc/mirror, readOnly: true}
        - {name: state, mountPath: /var/lib/mirror}
        {{- range .Values.secretFiles }}
        - {name: secret-{{ .name }}, mountPath: /etc/mirror-secrets/{{ .name }}, readOnly: true}
        {{- end }}
        {{- if .Values.dockerConfigSecret }}
        - {name: docker-config, mountPath: /etc/mirror-docker, readOnly: true}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ .Values.existingConfigMap | default (include "mirror.name" .) }}}
    - name: state
      {{- if .Values.persistence.enabled }}
      persistentVolumeClaim: {claimName: {{ .Values.persistence.existingClaim | default (include "mirror.name" .) }}}
      {{- else }}
      emptyDir: {}
      {{- end }}
    {{- range .Values.secretFiles }}
    - name: secret-{{ .name }}
      secret: {secretName: {{ .secret }}, defaultMode: 0440}
    {{- end }}
    {{- if .Values.dockerConfigSecret }}
    - name: docker-config
      secret:
        secretName: {{ .Values.dockerConfigSecret }}
        defaultMode: 0440
        items: [{key: .dockerconfigjson, path: config.json}]
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "mirror.jobSpec" -}}
{{- $indexed := gt (int .Values.shards) 1 -}}
{{- if $indexed -}}
completionMode: Indexed
completions: {{ .Values.shards }}
parallelism: {{ .Values.shards }}
backoffLimitPerIndex: {{ .Values.backoffLimit }}
{{- else -}}
backoffLimit: {{ .Values.backoffLimit }}
{{- end }}
{{- with .Values.activeDeadlineSeconds }}
activeDeadlineSeconds: {{ . }}
{{- end }}
# After these exit codes, a retry does not help: see the table of exit codes in docs/operations.md.
podFailurePolicy:
  rules:
    - action: {{ ternary "FailIndex" "FailJob" $indexed }}
      onExitCodes: {containerName: mirror, operator: In, values: [2, 3, 4]}
template:
  {{- include "mirror.podTemplate" . | nindent 2 }}
{{- end }}
