#!/usr/bin/env bash
# Installs what the build, the tests and quickstart need, with apt; does nothing when all is there.
set -euo pipefail

packages=(build-essential cmake pkg-config python3 libopenmpi-dev openmpi-bin libhdf5-dev hdf5-tools
          libdnnl-dev libyaml-dev libjansson-dev libxxhash-dev libpcre2-dev libutf8proc-dev libsentencepiece-dev zlib1g-dev libzstd-dev
          libcmocka-dev procps)

have() { [ "$(dpkg-query -W -f='${Status}' "$1" 2>/dev/null)" = "install ok installed" ]; }

missing=()
for package in "${packages[@]}"; do
    # pkgconf provides pkg-config on newer releases
    if ! have "$package" && ! { [ "$package" = pkg-config ] && command -v pkg-config >/dev/null; }; then
        missing+=("$package")
    fi
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "install.sh: no apt-get here; install by hand: ${missing[*]}" >&2
    exit 71
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root=()
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    as_root=(sudo)
else
    echo "install.sh: needs root for: apt-get install ${missing[*]} (run it as root, or with sudo)" >&2
    exit 71
fi

echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
if ! "${as_root[@]}" apt-get update -qq; then
    echo "install.sh: apt-get update failed; trying with the package lists that are here" >&2
fi
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
