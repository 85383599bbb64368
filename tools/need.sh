#!/bin/sh
# tools/need.sh PROGRAM[:PACKAGE]... installs missing system programs.
#
# Missing programs are installed with apt-get, through sudo if the user is not root. PACKAGE is needed if the package
# has another name than the program; ":PACKAGE" installs a package without a program. If every program is on PATH,
# nothing is changed.
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

command -v apt-get >/dev/null 2>&1 || give_up "Programs are missing, and this machine has no apt-get to install them."

as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || give_up "Programs are missing. Installing them requires root, and there is no sudo."
    as_root=sudo
    # Without a terminal, sudo cannot ask for a password.
    [ -t 0 ] || as_root="sudo -n"
    $as_root true || give_up "Programs are missing. Installing them requires root, and sudo refused."
fi

say "Installing system packages:$packages"

install() {
    # shellcheck disable=SC2086 # lists of words on purpose
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages >&2
}

# On a new machine the package lists may be empty or outdated. In that case update them and try again.
install || {
    $as_root apt-get update -q >&2 || give_up "apt-get update failed."
    install || give_up "apt-get could not install the missing packages."
}

# Debian's package starts a registry on port 5000 of all addresses. Only the program is needed here.
case "$packages" in
*docker-registry*)
    if [ -d /run/systemd/system ]; then
        $as_root systemctl disable --now docker-registry.service >/dev/null 2>&1 ||
            say "Note: a docker-registry service may now be running on port 5000. It is not needed."
    fi
    ;;
esac

for item in "$@"; do
    program=${item%%:*}
    [ -z "$program" ] || command -v "$program" >/dev/null 2>&1 || give_up "$program is still not on PATH."
done
