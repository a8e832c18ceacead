#!/usr/bin/env bash
# Runs an experiment on this machine with the given number of ranks (processes; on a GPU machine, GPUs).
#   bash launch/local.sh 2 experiment=demo_quick
#   bash launch/local.sh 2 experiment=demo training=zero2 run.name=sharded
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || fail "the first argument is the number of ranks, for example: bash launch/local.sh 2 experiment=demo_quick"
devices=$1
shift
[ $# -gt 0 ] || fail "say what to run, for example: bash launch/local.sh $devices experiment=demo_quick"
setup

say "distill run $* training.devices=$devices"
exec distill run "$@" "training.devices=$devices"
