{{/* Image of a part: (list $ "proxy") */}}
{{- define "weir.image" -}}
{{- $root := index . 0 }}{{ $part := index . 1 -}}
{{- $digest := get $root.Values.image.digests $part -}}
{{- if $digest -}}
{{ $root.Values.image.repository }}/{{ $part }}@{{ $digest }}
{{- else -}}
{{ $root.Values.image.repository }}/{{ $part }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Labels that select a part's pods, and never change: (list $ "weir-webhook") */}}
{{- define "weir.selector" -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}

{{/* Labels of every object: (list $ "weir-webhook") */}}
{{- define "weir.labels" -}}
{{- $root := index . 0 -}}
{{ include "weir.selector" . }}
app.kubernetes.io/part-of: weir
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end }}

{{/* Metadata of an object in Weir's namespace: (list $ "part" "name") */}}
{{- define "weir.metadata" -}}
name: {{ index . 2 }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "weir.labels" . | nindent 2 }}
{{- end }}

{{/* What a container has that needs nothing: passes Pod Security "restricted" */}}
{{- define "weir.restricted" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Where a part's pods go, and spread: (list $ "weir-webhook" .Values.webhook) */}}
{{- define "weir.placement" -}}
{{- $of := index . 2 -}}
nodeSelector:
  kubernetes.io/os: linux
  {{- with $of.nodeSelector }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with $of.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $of.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "weir.selector" $ | nindent 8 }}
    # Only the pods of one version: an update ends spread as well.
    matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}

{{/* The node's folders, for the agent and for what takes it away again. */}}
{{- define "weir.cni.volumes" -}}
{{- $paths := .Values.cni -}}
- name: bin
  hostPath: {path: {{ $paths.binDir }}, type: DirectoryOrCreate}
- name: conf
  hostPath: {path: {{ $paths.confDir }}, type: DirectoryOrCreate}
- name: cache
  hostPath: {path: {{ $paths.cacheDir }}, type: DirectoryOrCreate}
- name: netns
  hostPath: {path: {{ $paths.netnsDir }}, type: DirectoryOrCreate}
{{- end }}
{{- define "weir.cni.mounts" -}}
- {name: bin, mountPath: /host/opt/cni/bin}
- {name: conf, mountPath: /host/etc/cni/net.d}
- {name: cache, mountPath: /host/var/lib/cni, readOnly: true}
# Namespaces are mounts: those that are made later must be seen too.
- {name: netns, mountPath: /host/run/netns, mountPropagation: HostToContainer}
{{- end }}
{{- define "weir.cni.arguments" -}}
- --cni-bin-dir=/host/opt/cni/bin
- --cni-conf-dir=/host/etc/cni/net.d
- --cache-dir=/host/var/lib/cni
- --netns-dir=/host/run/netns
- --host-cache-dir={{ .Values.cni.cacheDir }}
{{- range list .Values.cni.netnsDir "/run/netns" "/var/run/netns" | uniq }}
- --host-netns-dir={{ . }}
{{- end }}
{{- end }}
