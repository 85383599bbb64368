#!/bin/sh
# contrib/container/debian-bases.sh DIR makes base images for the Containerfile from packages of Debian 12, for machines
# that cannot reach the registries of the default base images. It needs mmdebstrap and buildah, and runs as root.
#
# The script writes an OCI image layout to DIR, which must not exist, with these references:
#   builder:bookworm    a minimal Debian with Python and pip, for the architecture of this machine
#   runtime:bookworm    Python without a shell, for amd64 and arm64
#
# The runtime image consists of unpacked packages. None of its programs is run, so no emulator is needed.
set -eu

layout=$1
[ ! -e "$layout" ] || { echo "$layout exists already" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
native=$(dpkg --print-architecture)

# The packages that Python and the libraries in requirements.txt need. The dependencies of python3.11-minimal are added.
packages=python3-minimal,libpython3.11-stdlib,libstdc++6,ca-certificates,netbase,tzdata

for architecture in amd64 arm64; do
    root=$work/runtime-$architecture
    mmdebstrap --quiet --variant=extract --architectures="$architecture" --include="$packages" bookworm "$root"
    # If the packages were installed, a script of the package ca-certificates would create this file.
    cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
    printf '%s\n' 'root:x:0:0:root:/:/sbin/nologin' 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$root/etc/passwd"
    printf '%s\n' 'root:x:0:' 'nonroot:x:65532:' >"$root/etc/group"
    # Remove the programs that install packages, and all documentation except licenses.
    (
        cd "$root"
        rm -rf bin sbin usr/sbin usr/share/man usr/share/debconf usr/share/perl* usr/lib/dpkg var/lib/dpkg var/lib/apt \
            var/cache var/log etc/dpkg etc/apt dev
        find usr/bin -mindepth 1 ! -name 'python3*' -delete
        find usr/share/doc -type f ! -name copyright -delete
    )
done
mmdebstrap --quiet --variant=minbase --include=python3-pip,ca-certificates bookworm "$work/builder-$native"

build() { # NAME ARCHITECTURE...
    name=$1
    shift
    for architecture in "$@"; do
        printf 'FROM scratch\nCOPY %s-%s /\n' "$name" "$architecture" >"$work/Containerfile"
        buildah build --quiet --storage-driver vfs --root "$work/storage" --runroot "$work/run" \
            --platform "linux/$architecture" --manifest "$name" "$work"
    done
    buildah manifest push --quiet --storage-driver vfs --root "$work/storage" --runroot "$work/run" \
        --all "$name" "oci:$work/layout:$name:bookworm"
}
build builder "$native"
build runtime amd64 arm64
mkdir -p "$(dirname "$layout")"
mv "$work/layout" "$layout"
