#!/usr/bin/env bash
# Sets everything up, then lints, checks types and runs the tests; arguments go to pytest.
#   bash launch/test.sh
#   bash launch/test.sh tests/losses -x
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup

if ! has_gpu; then export DS_ACCELERATOR=cpu; fi
export OMP_NUM_THREADS=1  # two ranks on two cores, and results that don't depend on the machine
export WANDB_MODE=offline # no account, and
export HF_HUB_OFFLINE=1   # no hub: what tests need is in the repository or in a package registry

cd "$repo"
say "ruff check"
ruff check .
say "ruff format --check"
ruff format --check .
say "mypy"
mypy
say "pytest $*"
python -m pytest --durations=15 "$@"
