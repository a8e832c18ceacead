# Sourced by the scripts beside it: makes .venv with everything distill_system needs, once, and puts it first on PATH.
# A second call costs well under a second; pyproject.toml or constraints.txt changed means installing again.
# PYTHON=/path/to/python3 chooses the interpreter of a new .venv.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$repo/.venv"

say() { printf '== %s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

python_is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        python_is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.10 or newer."
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$candidate" >/dev/null && python_is_new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "Python 3.10 or newer was not found; install it (packages python3 and python3-venv), or name one with PYTHON=/path/to/python3."
}

require_disk() { # require_disk GIGABYTES
    local free_kb
    free_kb=$(df -Pk "$repo" | awk 'NR == 2 {print $4}')
    [ "$free_kb" -ge $(($1 * 1024 * 1024)) ] ||
        fail "installing needs $1 GB of disk in $repo and $((free_kb / 1024)) MB are free; free some, or move the clone to a larger disk."
}

venv_works() { "$venv/bin/python" -m pip --version >/dev/null 2>&1 && python_is_new_enough "$venv/bin/python"; }

make_venv() {
    local python
    python=$(find_python) || exit 1
    require_disk 6
    [ ! -e "$venv" ] || say "$venv doesn't work any more (an older Python, or a moved folder); making it again"
    say "making $venv with $("$python" --version 2>&1)"
    "$python" -m venv --clear "$venv" >/dev/null ||
        fail "could not make $venv; on Debian and Ubuntu, install the package python3-venv first."
}

install_packages() {
    local log="$venv/install.log"
    say "installing distill_system and what it needs into .venv (some minutes the first time; log in .venv/install.log)"
    if ! (cd "$repo" && "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
        -e ".[$1]" -c constraints.txt >"$log" 2>&1 </dev/null); then
        tail -n 5 "$log" >&2
        if grep -qiE 'no space left' "$log"; then
            fail "the disk is full; free some space and run this again."
        elif grep -qiE 'connection|name resolution|no matching distribution|timed out|proxy|ssl|network' "$log"; then
            fail "the package index can't be reached, and something must be installed: check the network and run this again ($log)."
        fi
        fail "the installation failed; the whole log is $log."
    fi
}

# The path is part of the stamp: an editable install points at the folder it was made in.
stamp_now() { { printf '%s\n' "$repo" "$1"; cat "$repo/pyproject.toml" "$repo/constraints.txt"; "$venv/bin/python" --version; } | cksum; }

setup() { # setup [EXTRAS]
    local extras=${1:-dev} stamp
    stamp="$venv/.installed-${extras//,/-}"
    if command -v flock >/dev/null; then # two scripts started at once: the second waits
        exec 9<"$repo"
        flock -n 9 || { say "waiting for another setup to end"; flock 9; }
    fi
    venv_works || make_venv
    if [ "$(cat "$stamp" 2>/dev/null)" != "$(stamp_now "$extras")" ]; then
        [ -n "$(ls "$venv"/.installed-* 2>/dev/null)" ] || require_disk 6
        install_packages "$extras"
        stamp_now "$extras" >"$stamp"
    fi
    if command -v flock >/dev/null; then exec 9<&-; fi
    export PATH="$venv/bin:$PATH"
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep GPU >/dev/null; }
