#!/bin/sh
# Switches all requests from one version to another at once: bluegreen.sh HTTPROUTE FROM TO. The way back is the same with FROM and TO
# exchanged. Requests under way end where they began, and so do sessions (sessionPersistence). So it waits until FROM has no more of them
# and can be taken away; the exit code is 3 where that takes too long.
set -eu

# Settings, from the environment, beside those of mesh.sh:
QUIET=${QUIET:-30}    # seconds without a request to FROM, after which it is drained: longer than your longest request
DRAIN=${DRAIN:-600}   # seconds that this may take; 0: does not wait

# shellcheck source-path=SCRIPTDIR source=mesh.sh
. "$(dirname "$0")/mesh.sh"
arguments "$@"

changed=yes
set_weights 0 100
in_force
changed=''
say "switched: all new requests of $ROUTE go to $TO"

end=$(($(date +%s) + DRAIN))
while [ "$(date +%s)" -lt "$end" ]; do
    mark "$FROM" || fail 1 "no metrics of the callers in $CLIENTS${PROMETHEUS:+ from $PROMETHEUS}; the switch stays"
    pause "$QUIET"
    counts=$(since "$FROM") || continue
    if [ "${counts% *}" -eq 0 ]; then
        say "drained: no request to $FROM in $QUIET s"
        exit 0
    fi
    say "${counts% *} requests to $FROM in $QUIET s"
done
[ "$DRAIN" -eq 0 ] || fail 3 "$FROM has requests after $DRAIN s still: sessions stay until their callers or its pods end"
