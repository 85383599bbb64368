#!/bin/sh
# tools/setup.sh DIR creates the virtual environment DIR and installs the project into it, editable, with the
# dependencies of its tests, in the versions of tools/constraints.txt: a new release of a dependency must not change
# the result of the tests. PYTHON names the interpreter. The default is the first one on PATH that is new enough.
set -eu

venv=$1
cd "$(dirname "$0")/.."

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

new_enough() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

python=
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if new_enough "$candidate"; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "Python 3.11 or later is required (tried: ${PYTHON:-python3, python3.14 ... python3.11})." \
    "Install one, with its venv module (on Debian and Ubuntu: python3 python3-venv), or name it: make PYTHON=/path/to/python"

if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    # On Debian, the module that installs pip into a new environment has its own package.
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    tools/need.sh ":$package" || fail "$python cannot create a virtual environment without it."
fi

new_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || {
    printf 'Creating the virtual environment %s\n' "$venv" >&2
    "$python" -m venv --clear "$venv"
}

printf 'Installing the project and its Python dependencies into %s\n' "$venv" >&2
# The mode "compat" adds a line to a .pth file. The default mode adds an import hook, which delays each start of
# Python by 20 ms.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat \
    --constraint tools/constraints.txt --editable '.[test]' ||
    fail "pip could not install the dependencies (see above). Check that a package index is reachable."
