#!/usr/bin/env bash
# Take a node out of service where training would not work: a Prolog, or a HealthCheckProgram, of slurmd.
#
#   slurm.conf   Prolog=/etc/slurm/health-check.sh               a job whose node fails is requeued, and the node drained
#                PrologFlags=Alloc
#                SchedulerParameters=nohold_on_prolog_fail     otherwise the job waits until a person releases it
#   or           HealthCheckProgram=/etc/slurm/health-check.sh
#                HealthCheckInterval=300
#                HealthCheckNodeState=IDLE
#
# /etc/slurm/health-check.conf, or the file that HEALTH_CHECK_CONF specifies, is a shell file with these variables:
#
#   PREFLIGHT   the command that checks the node, such as: apptainer exec --nv /images/env.sif doctor --gpus 8
#   DEADLINE    seconds that it may take (default: 30; slurmd gives a prolog 300, and a health check 60)
#
# A node is never resumed here: whoever has repaired it does that, scontrol update NodeName=NODE State=RESUME.
set -uo pipefail

conf=${HEALTH_CHECK_CONF:-/etc/slurm/health-check.conf}
# shellcheck source=/dev/null
[ ! -r "$conf" ] || . "$conf"
if [ -z "${PREFLIGHT:-}" ]; then
    echo "health-check: $conf: expected PREFLIGHT, found none; set the command that checks a node" >&2
    exit 0 # a mistake here must not drain the cluster
fi
said=$(timeout --kill-after=5 "${DEADLINE:-30}" bash -c "$PREFLIGHT" 2>&1 < /dev/null)
code=$?
[ "$code" != 0 ] || exit 0
case $code in
126 | 127) # the check itself is not there, on a file system that is not mounted, for example
    reason="health check cannot run: $(tail -n 1 <<< "$said")" ;;
124 | 137) reason="health check took more than ${DEADLINE:-30} s" ;;
*) reason="health check: $(grep -m 1 -i 'fail' <<< "$said" || tail -n 1 <<< "$said")" ;;
esac
reason=$(tr -s '[:space:]' ' ' <<< "$reason" | cut -c 1-200)
echo "$reason" >&2
node=${SLURMD_NODENAME:-$(hostname -s)}
# A prolog that fails drains its node, too, but without a reason that helps.
scontrol update NodeName="$node" State=DRAIN Reason="$reason"
exit 1
