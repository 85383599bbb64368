#!/bin/sh
# tools/dist.sh DIR builds the files of a release into dist/, and checks that no dependency has a GPL license:
#   mirror-VERSION-py3-none-any.whl, mirror-VERSION.tar.gz    the wheel, and the source distribution
#   requirements.txt                                          the dependencies with their versions and hashes
#   mirror-VERSION.cdx.json                                   the SBOM (CycloneDX) of an installation with all extras
#   THIRD-PARTY-LICENSES                                      the licenses of these dependencies
#   SHA256SUMS                                                the hashes of all these files
# DIR is a virtual environment with the Python packages build, cyclonedx-bom and pip-licenses.
set -eu

tools=$(cd "$1" && pwd)/bin
cd "$(dirname "$0")/.."
release=build/release

# The same commit gives the same wheel. A copy of the source without git has no commit, and gets the current time.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

rm -rf dist build
"$tools/python" -m build --outdir dist .
version=$("$tools/python" -c 'from mirror import __version__; print(__version__)')

# An installation from a path would record this path. One that is found in a directory does not.
"$tools/python" -m venv --without-pip "$release"
pip() { "$tools/python" -m pip --python "$release/bin/python" --quiet --disable-pip-version-check "$@"; }
pip install --require-hashes --requirement requirements.txt
pip install --no-index --no-deps --find-links dist "mirror==$version"

# cyclonedx-py reads the name and the direct dependencies of the product only from such a file. JSON strings are TOML.
"$release/bin/python" - >build/pyproject.toml <<'EOF'
import json
from importlib.metadata import metadata

about = metadata("mirror")
needs = [one.partition(";")[0].strip() for one in about.get_all("Requires-Dist") if 'extra == "test"' not in one]
print("[project]")
print(*(f"{key.lower()} = {json.dumps(about[key])}" for key in ("Name", "Version")), sep="\n")
print(f"license = {json.dumps(about['License-Expression'] or about['License'])}")
print(f"dependencies = {json.dumps(needs)}")
EOF
"$tools/cyclonedx-py" environment --output-reproducible --pyproject build/pyproject.toml \
    --output-file "dist/mirror-$version.cdx.json" "$release/bin/python"
"$tools/pip-licenses" --python "$release/bin/python" --ignore-packages mirror --partial-match --fail-on GPL \
    --format plain-vertical --with-urls --with-license-file --no-license-path --with-notice-file \
    --output-file dist/THIRD-PARTY-LICENSES

cp requirements.txt dist/
(cd dist && sha256sum -- * >../build/SHA256SUMS && mv ../build/SHA256SUMS .)
