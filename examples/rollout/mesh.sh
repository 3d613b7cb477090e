# shellcheck shell=sh
# What both scripts do to a route, and ask of the mesh. Read by them, not run.

# Settings of both, from the environment:
NAMESPACE=${NAMESPACE:-default}   # of the route and its backends
RULE=${RULE:-0}                   # which of the route's rules, counted from 0
CLIENTS=${CLIENTS:-$NAMESPACE}    # namespaces of the callers, whose proxies are asked what came of their requests
PROMETHEUS=${PROMETHEUS:-}        # http://HOST:PORT of a Prometheus that is asked in their place
IN_FORCE=${IN_FORCE:-60}          # seconds within which the mesh has to take over a change

kube() {
    kubectl --namespace "$NAMESPACE" --request-timeout 10s "$@"
}

say() {
    echo "$(date -u +%H:%M:%S) $*"
}

fail() { # code, message
    echo "$0: $2" >&2
    exit "$1"
}

# Reads HTTPROUTE FROM TO, and finds the two backends in the rule. They have to be its only ones: else weights are no percentages.
arguments() {
    [ $# -eq 3 ] || fail 2 "usage: $(basename "$0") HTTPROUTE FROM TO; settings are at the top of it and of mesh.sh"
    ROUTE=$1 FROM=$2 TO=$3
    names=$(kube get httproute "$ROUTE" --output "jsonpath={.spec.rules[$RULE].backendRefs[*].name}") || exit 1
    case $names in
        "$FROM $TO") FROM_AT=0 TO_AT=1 ;;
        "$TO $FROM") FROM_AT=1 TO_AT=0 ;;
        *) fail 2 "rule $RULE of HTTPRoute $NAMESPACE/$ROUTE has the backends '$names' and not just '$FROM $TO'" ;;
    esac
    ready=$(kube get endpointslices --selector "kubernetes.io/service-name=$TO" \
        --output 'jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}') || exit 1
    [ -n "$ready" ] || fail 1 "Service $NAMESPACE/$TO has no ready pod; nothing was changed"
    WORK=$(mktemp -d)
    sleeping='' changed=''
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# Gives FROM and TO their weights in one step, unless somebody has put other backends in their places meanwhile.
set_weights() { # of FROM, of TO
    backends=/spec/rules/$RULE/backendRefs
    kube patch httproute "$ROUTE" --type json --patch "[
        {\"op\": \"test\", \"path\": \"$backends/$FROM_AT/name\", \"value\": \"$FROM\"},
        {\"op\": \"test\", \"path\": \"$backends/$TO_AT/name\", \"value\": \"$TO\"},
        {\"op\": \"add\", \"path\": \"$backends/$FROM_AT/weight\", \"value\": $1},
        {\"op\": \"add\", \"path\": \"$backends/$TO_AT/weight\", \"value\": $2}]" >"$WORK/patched" 2>&1 ||
        { cat "$WORK/patched" >&2; return 1; }
}

# Waits until the mesh says that the route as it is now is in force.
in_force() {
    conditions='{range .status.parents[?(@.controllerName=="weir.dev/mesh")].conditions[*]} {.type}/{.observedGeneration}/{.status}/{.reason}{end}'
    end=$(($(date +%s) + IN_FORCE))
    while :; do
        status=$(kube get httproute "$ROUTE" --output "jsonpath={.metadata.generation}$conditions") || status='? no answer'
        now=${status%% *}
        case $status in
            *"/$now/False/"*) say "the mesh can not do it: $status"; return 1 ;;
            *" Accepted/$now/True/"*" ResolvedRefs/$now/True/"* | *" ResolvedRefs/$now/True/"*" Accepted/$now/True/"*) return 0 ;;
        esac
        [ "$(date +%s)" -lt "$end" ] || { say "not in force after $IN_FORCE s: $status"; return 1; }
        pause 1
    done
}

# Sleeps so that a signal is heard at once.
pause() { # seconds
    sleep "$1" &
    sleeping=$!
    wait "$sleeping"
    sleeping=''
}

# Every end of the script. One that is not the good one turns back.
finish() {
    code=$?
    trap - EXIT
    trap '' HUP INT TERM
    [ -z "$sleeping" ] || kill "$sleeping" 2>/dev/null || true
    if [ -n "$changed" ]; then
        say "turning back: all requests of $ROUTE to $FROM"
        tries=0
        until set_weights 100 0; do
            tries=$((tries + 1))
            [ "$tries" -lt 30 ] || fail 1 "could NOT turn back: give $TO the weight 0 in HTTPRoute $NAMESPACE/$ROUTE by hand"
            sleep 2
        done
        if in_force; then say "turned back"; fi
    fi
    rm -rf "$WORK"
    exit "$code"
}

# Remembers what was counted for a Service until now.
mark() { # Service
    if [ -z "$PROMETHEUS" ]; then
        counted "$1" >"$WORK/marked"
    else
        date +%s >"$WORK/marked"
        grown "$1" '' >"$WORK/now" # whether it answers
    fi
}

# How many requests to a Service have ended since the mark, and how many of them failed: ALL FAILED. No answer, 5xx and gRPC's statuses
# of a server's own fault are failures; a caller that did not wait is none.
since() { # Service
    if [ -n "$PROMETHEUS" ]; then
        all=$(grown "$1" '') && bad=$(grown "$1" 'response_code=~"0|5..", response_flags!~".*DC.*"') &&
            calls=$(grown "$1" 'response_code!~"0|5..", grpc_response_status=~"2|4|12|13|14|15"') &&
            echo "$all $((bad + calls))"
        return
    fi
    counted "$1" >"$WORK/now" || return 1
    # A proxy that was started again counts from 0.
    awk 'FILENAME == ARGV[1] { all[$1] = $2; bad[$1] = $3; next }
        { if ($2 < all[$1]) all[$1] = bad[$1] = 0; sum += $2 - all[$1]; failed += $3 - bad[$1] }
        END { printf "%d %d\n", sum, failed }' "$WORK/marked" "$WORK/now"
}

# What each caller's proxy has counted for a Service: POD ALL FAILED. The API server fetches it: `get` on `pods/proxy` is needed.
counted() { # Service
    asked=0
    echo 'no running pod there has a proxy' >"$WORK/why"
    for namespace in $CLIENTS; do
        kube get pods --namespace "$namespace" --field-selector status.phase=Running \
            --output 'jsonpath={range .items[*]}{.metadata.name} {.spec.initContainers[*].name}{"\n"}{end}' >"$WORK/pods" || return 1
        awk '/ weir-proxy( |$)/ { print $1 }' "$WORK/pods" >"$WORK/proxies"
        while read -r pod; do
            # One that has just ended is passed over.
            kube get --raw "/api/v1/namespaces/$namespace/pods/$pod:15090/proxy/stats/prometheus" \
                >"$WORK/metrics" 2>"$WORK/why" || continue
            asked=$((asked + 1))
            awk -v pod="$namespace/$pod" -v name="destination_service_name=\"$1\"" -v space="destination_service_namespace=\"$NAMESPACE\"" '
                /^istio_requests_total\{/ && /reporter="source"/ && index($0, name) && index($0, space) {
                    all += $NF
                    if (/response_code="(0|5..)"/ && !/response_flags="[^"]*DC/ || /grpc_response_status="(2|4|12|13|14|15)"/) failed += $NF
                }
                END { printf "%s %.0f %.0f\n", pod, all, failed }' "$WORK/metrics"
        done <"$WORK/proxies"
    done
    [ "$asked" -gt 0 ] || { cat "$WORK/why" >&2; return 1; }
}

# By how much Prometheus has seen the requests to a Service grow since the mark. Series that are new have grown from 0.
grown() { # Service, further conditions
    series="istio_requests_total{reporter=\"source\", destination_service_name=\"$1\", destination_service_namespace=\"$NAMESPACE\", $2}"
    seconds=$(($(date +%s) - $(cat "$WORK/marked") + 1))
    curl --silent --show-error --fail --max-time 10 --get "$PROMETHEUS/api/v1/query" --data-urlencode \
        "query=sum(clamp_min($series - ($series offset ${seconds}s or $series * 0), 0)) or vector(0)" >"$WORK/grown" || return 1
    # {"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[TIME,"NUMBER"]}]}}
    sed -n 's/.*"value":\[[^,]*,"\([^"]*\)"\].*/\1/p' "$WORK/grown" | awk '{ printf "%d\n", $1; found = 1 } END { exit !found }'
}
