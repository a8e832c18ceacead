#!/usr/bin/env bash
# Sets everything up, fine-tunes a teacher, distils a student from it on two ranks, prunes it, quantizes it, and says where the report and the packed model lie.
#   bash launch/demo.sh                            the demo, less than ten minutes on two cores
#   bash launch/demo.sh experiment=demo_quick      teacher and student, in less than 90 seconds
#   bash launch/demo.sh KEY=VALUE ...              any override of `distill run`
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup

experiment=demo name="" folder=runs
for argument in "$@"; do
    case $argument in
    experiment=*) experiment=${argument#*=} ;;
    run.name=*) name=${argument#*=} ;;
    run.dir=*) folder=${argument#*=} ;;
    esac
done
[[ " $* " == *" experiment="* ]] || set -- "experiment=$experiment" "$@"

cd "$repo"
say "distill run $*"
distill run "$@"
report="$folder/${name:-$experiment}/report/index.html"
case $report in /*) ;; *) report="$repo/$report" ;; esac
if [ -f "$report" ]; then say "open the report: $report"; fi
packed="${report%/report/index.html}/quantize/packed"
if [ -d "$packed" ]; then say "the packed model: $packed"; fi
