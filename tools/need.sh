#!/bin/sh
# tools/need.sh PROGRAM[:PACKAGE]... makes sure that system programs are there.
#
# Those that are missing are installed with apt-get, through sudo where we are not root. PACKAGE is given where it is
# not named like its program; ":PACKAGE" installs a package that brings no program. Nothing is touched when every
# program is on PATH already.
set -eu

say() { printf '%s\n' "$*" >&2; }

packages=
for item in "$@"; do
    command -v "${item%%:*}" >/dev/null 2>&1 || packages="$packages ${item##*:}"
done
[ -n "$packages" ] || exit 0

give_up() {
    say "$1"
    say "Install these packages by hand, then run make again:$packages"
    exit 1
}

command -v apt-get >/dev/null 2>&1 || give_up "Programs are missing, and this machine has no apt-get to install them with."

as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || give_up "Programs are missing; installing them takes root, and there is no sudo."
    as_root=sudo
    # Nobody can answer a question for a password where there is no terminal.
    [ -t 0 ] || as_root="sudo -n"
    $as_root true || give_up "Programs are missing; installing them takes root, and sudo refused."
fi

say "Installing system packages:$packages"

install() {
    # shellcheck disable=SC2086 # lists of words on purpose
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages >&2
}

# The package lists of a new machine are empty or old: then the first try fails, and the second has new ones.
install || {
    $as_root apt-get update -q >&2 || give_up "apt-get update failed."
    install || give_up "apt-get could not install what is missing."
}

# Debian's package starts a registry that listens on port 5000 of every address. Here only the program is wanted.
case "$packages" in
*docker-registry*)
    if [ -d /run/systemd/system ]; then
        $as_root systemctl disable --now docker-registry.service >/dev/null 2>&1 ||
            say "Note: a docker-registry service may now be running on port 5000; it is not needed here."
    fi
    ;;
esac

for item in "$@"; do
    program=${item%%:*}
    [ -z "$program" ] || command -v "$program" >/dev/null 2>&1 || give_up "$program is still not on PATH."
done
