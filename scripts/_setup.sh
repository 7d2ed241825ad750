# Sourced by the scripts in this folder: makes .venv if it is missing, renews it if it is out of date, else does nothing.
# Needs only Python >= 3.11 (set PYTHON to choose one). Leaves ROOT and VENV set.
set -euo pipefail

ROOT=$(CDPATH='' cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv

# Another project's environment must not leak into ours.
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME PYTHONSTARTUP PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 2; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13 python3.14 python; do
        if is_new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no Python >= 3.11 found; install one (Debian: apt-get install python3 python3-venv) or set PYTHON=/path/to/python3"
}

# On Debian as root a missing package is installed; everybody else is told the command.
debian_install() {
    if [ "$(id -u)" -eq 0 ] && [ -f /etc/debian_version ] && command -v apt-get >/dev/null; then
        say "installing Debian packages: $*"
        apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
    else
        say "not installed: $*; on Debian: sudo apt-get install $*"
        return 1
    fi
}

# The environment is up to date when this text is in its stamp: it holds all that it was made from.
stamp() {
    "$1" - "$ROOT" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
made_from = b"".join((root / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
print(hashlib.sha256(made_from).hexdigest(), sys.version.split()[0], root)
PY
}

make_venv() {
    local python version
    python=$(find_python)
    rm -rf "$VENV"
    if ! "$python" -m venv "$VENV" >/dev/null 2>&1; then
        version=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        debian_install "$version" || fail "$python cannot make virtual environments"
        rm -rf "$VENV"
        "$python" -m venv "$VENV"
    fi
}

# .unfinished marks an environment whose making was interrupted: it is made again from nothing.
setup() {
    if [ ! -e "$VENV/.unfinished" ] && is_new_enough "$VENV/bin/python" && [ -f "$VENV/.stamp" ]; then
        [ "$(cat "$VENV/.stamp")" != "$(stamp "$VENV/bin/python")" ] || return 0
        # A copied or moved environment still points to the old place.
        [ "$(cut -d' ' -f3- "$VENV/.stamp")" = "$ROOT" ] || make_venv
    else
        make_venv
    fi
    touch "$VENV/.unfinished"
    say "setting up $VENV: a few minutes and 7 GB, once"
    "$VENV/bin/python" -m pip install --quiet -e "$ROOT[app,test]" -c "$ROOT/constraints.txt" >&2 ||
        fail "pip could not install visfeedback; its messages are above"
    stamp "$VENV/bin/python" >"$VENV/.stamp"
    rm "$VENV/.unfinished"
}

# Two scripts started together wait for each other.
if command -v flock >/dev/null; then
    exec 9>"$ROOT/.venv.lock"
    flock 9
    setup
    exec 9>&-
else
    setup
fi
