#!/usr/bin/env bash
# bundle.sh SOURCE FOLDER: makes FOLDER, which holds bin/ with our programs, run anywhere: the libraries they need but
# glibc's and NVIDIA's, mpirun with its plugins, configs, the GPU kit. Prints sizes and the glibc needed.
set -euo pipefail
source=$1 folder=$2
limit_mib=60 # compressed
lib=$folder/lib
mkdir -p "$lib"

# Part of glibc, or of the driver: always the node's own.
nodes_own='^(ld-linux.*|libc|libm|libdl|librt|libpthread|libresolv|libutil|libanl|libnss_.*|libcuda|libnvidia-.*)\.so'

# copy_needed FILE...: into lib/, what they need and what that needs.
copy_needed() {
    ldd "$@" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u | while read -r path; do
        name=$(basename "$path")
        [[ $name =~ $nodes_own ]] || [ -e "$lib/$name" ] || cp -L "$path" "$lib/$name"
    done
}
# Missing libraries would only show on the node.
programs=("$folder"/bin/*)
if missing=$(ldd "${programs[@]}" | grep 'not found'); then
    echo "bundle.sh: $missing" >&2
    exit 69
fi
copy_needed "${programs[@]}"

# Open MPI finds its plugins below a prefix: the same tree, below FOLDER. Without those for networks this kit does not
# use, MPI-IO, OpenSHMEM and other launchers.
if command -v ompi_info >/dev/null; then
    where() { ompi_info --path "$1" --parsable | head -n 1 | cut -d: -f3-; }
    prefix=$(where prefix) plugins=$(where pkglibdir) data=$(where pkgdatadir)
    unused='ofi|psm|ucx|openib|usnic|monitoring|flux|jsm|gridengine|mindist|treematch|vprotocol'
    unused+='|(io|fs|fcoll|fbtl|sharedfp|memheap|scoll|spml|sshmem|crs|compress)_[a-z0-9_]*'
    mkdir -p "$folder/${plugins#"$prefix"/}"
    for plugin in "$plugins"/mca_*.so; do
        [[ $(basename "$plugin") =~ ^mca_.*($unused).*\.so$ ]] || cp -L "$plugin" "$folder/${plugins#"$prefix"/}/"
    done
    copy_needed "$folder/${plugins#"$prefix"/}"/*.so
    # So do PMIx, which came with them, and hwloc, whose plugins are not needed.
    pmix=$(ldd "$plugins"/mca_pmix_*.so 2>/dev/null | awk '/libpmix/ { print $3; exit }')
    pmix=$(dirname "$(readlink -f "${pmix:-/}")")/pmix
    mkdir -p "$lib/pmix" "$lib/hwloc"
    [ ! -d "$pmix" ] || cp -L "$pmix"/*.so "$lib/pmix/"
    copy_needed "$lib"/pmix/*.so
    [ ! -d "$data" ] || { mkdir -p "$folder/${data#"$prefix"/}" && cp -L "$data"/*.txt "$folder/${data#"$prefix"/}/"; }
    mkdir -p "$folder/libexec"
    for tool in orterun orted; do
        cp -L "$(command -v $tool)" "$folder/libexec/$tool"
        copy_needed "$folder/libexec/$tool"
    done
    cat >"$folder/bin/mpirun" <<'WRAPPER'
#!/bin/sh
# mpirun of the bundle: Open MPI told where it lies now. Several nodes: use theirs (docs/gpu.md).
root=$(cd "$(dirname "$0")/.." && pwd)
export OPAL_PREFIX="$root" PMIX_PKGLIBDIR="$root/lib/pmix" HWLOC_PLUGINS_PATH="$root/lib/hwloc"
export OMPI_MCA_orte_launch_agent="$root/libexec/orted"
exec "$root/libexec/orterun" "$@"
WRAPPER
    chmod +x "$folder/bin/mpirun"
else
    echo "bundle.sh: no ompi_info: the bundle has no mpirun, use the node's" >&2
fi

# What names folders of this machine must name the bundle's.
find "$lib" "$folder/libexec" -type f -exec python3 "$source/tests/gpu/rpath.py" "$lib" {} +

mkdir -p "$folder/tests/gpu" "$folder/docs"
cp -r "$source/configs" "$folder/"
cp "$source/docs/gpu.md" "$source/docs/config.md" "$source/LICENSE" "$folder/docs/"
cp "$source"/tests/gpu/{run,bench.py,README.md} "$folder/tests/gpu/"
cp "$source"/tests/gpu/*.goldens "$folder/tests/gpu/" 2>/dev/null || true
strip --strip-debug "$folder"/bin/* 2>/dev/null || true

glibc=$({ find "$folder" -type f \( -name '*.so*' -o -path '*/bin/*' -o -path '*/libexec/*' \) -exec objdump -T {} + 2>/dev/null || true; } |
    grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -n 1)
echo "needs glibc ${glibc#GLIBC_} or newer, x86-64" | tee "$folder/REQUIREMENTS"
tar -C "$(dirname "$folder")" -czf "$folder.tar.gz" "$(basename "$folder")"
mib=$(($(stat -c %s "$folder.tar.gz") / 1048576 + 1))
echo "$(du -sm "$folder" | cut -f1) MiB in $(find "$folder" -type f | wc -l) files, $mib MiB compressed: $folder.tar.gz"
[ "$mib" -lt "$limit_mib" ] || { echo "bundle.sh: $mib MiB compressed, at most $limit_mib" >&2; exit 75; }
