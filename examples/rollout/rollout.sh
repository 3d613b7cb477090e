#!/bin/sh
# Rolls out a new version step by step, and turns back by itself: rollout.sh HTTPROUTE FROM TO, where FROM and TO are the Services of the
# old and the new version. Each step gives TO more of the requests, waits until that is in force, and lets it bake. Where too many of the
# requests to TO fail, where there are too few to judge, or when this is interrupted, all go to FROM again, and the exit code is not 0.
set -eu

# Settings, from the environment, beside those of mesh.sh:
STEPS=${STEPS:-5 25 50 100}        # percent
BAKE=${BAKE:-60}                   # seconds that each step lasts
CHECK=${CHECK:-5}                  # seconds between looks at the metrics
MAX_FAILED=${MAX_FAILED:-1}        # percent of the requests to TO
MIN_REQUESTS=${MIN_REQUESTS:-50}   # to TO, in each step; with fewer nothing is judged

# shellcheck source-path=SCRIPTDIR source=mesh.sh
. "$(dirname "$0")/mesh.sh"
arguments "$@"

# What came of the requests to TO since the step began. Ends the roll-out where too many failed.
judge() {
    if counts=$(since "$TO"); then
        all=${counts% *} failed=${counts#* }
        if [ "$all" -ge "$MIN_REQUESTS" ] && awk "BEGIN { exit !($failed * 100 > $MAX_FAILED * $all) }"; then
            say "$failed of $all requests to $TO failed: more than $MAX_FAILED %"
            exit 1
        fi
    else
        all='' # unreadable once is no reason to turn back, at the end of a step it is
    fi
}

for weight in $STEPS; do
    mark "$TO" || fail 1 "no metrics of the callers in $CLIENTS${PROMETHEUS:+ from $PROMETHEUS}"
    changed=yes
    set_weights $((100 - weight)) "$weight"
    in_force
    say "$weight % to $TO"
    end=$(($(date +%s) + BAKE))
    while [ "$(date +%s)" -lt "$end" ]; do
        pause "$CHECK"
        judge
    done
    [ -n "$all" ] || { say "no metrics of the callers in $CLIENTS${PROMETHEUS:+ from $PROMETHEUS}"; exit 1; }
    [ "$all" -ge "$MIN_REQUESTS" ] || { say "only $all requests to $TO in $BAKE s: too few to judge ($MIN_REQUESTS)"; exit 1; }
    say "$failed of $all requests to $TO failed"
done
changed=''
say "done: all requests of $ROUTE go to $TO"
