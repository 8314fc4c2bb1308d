#!/bin/sh
# Runs `inknib test` and `inknib bench --ops` on every software driver that Debian has, without touching the system, and lays the
# results side by side: docs/adapters/*.json, index.html, README.md. Debian 12 on x86-64. With --full, which takes some fifteen minutes a
# driver on two cores, a table of each goes to docs/adapters/full/*.md instead. NO_BENCH=1 leaves bench out; INKNIB names another binary than the release build.
#
#   tools/adapters.sh [--quick|--full] [NAME ...]      names: lavapipe-22 lavapipe-25-128 lavapipe-25-256 lavapipe-25-512 lavapipe-26
#                                              swiftshader gl; default: all
set -eu
cd "$(dirname "$0")/.."
level=
case ${1:-} in --quick | --full) level=$1 && shift ;; esac
names=${*:-lavapipe-22 lavapipe-25-128 lavapipe-25-256 lavapipe-25-512 lavapipe-26 swiftshader gl}
inknib=${INKNIB:-${CARGO_TARGET_DIR:-target}/release/inknib}
drivers=$PWD/target/drivers
out=docs/adapters
mirror=${MIRROR:-http://deb.debian.org/debian}
mkdir -p "$drivers" "$out"
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/tmp}"

say() { printf '%s\n' "$*" >&2; }

# icd FILE LIBRARY: a loader's description of a driver
icd() { printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "%s", "api_version": "1.3.0"}}\n' "$2" >"$1"; }

# apt_root FOLDER SUITE: an apt of its own, which knows nothing of this system's packages
apt_root() {
    mkdir -p "$1/lists/partial" "$1/cache/archives/partial" "$1/state"
    : >"$1/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $2 main" >"$1/sources.list"
    cat >"$1/apt.conf" <<EOF
Dir::State "$1/state";
Dir::State::status "$1/status";
Dir::State::lists "$1/lists";
Dir::Cache "$1/cache";
Dir::Etc::sourcelist "$1/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "root";
EOF
    APT_CONFIG=$1/apt.conf apt-get -qq update
}

# Mesa 25 of bookworm-backports, beside this system's own libraries
fetch_25() {
    [ -e "$drivers/lavapipe-25.json" ] && return 0
    root=$drivers/backports
    apt_root "$root" bookworm-backports
    (cd "$root" && APT_CONFIG=$root/apt.conf apt-get -qq download mesa-vulkan-drivers libdrm2 libdrm-amdgpu1 &&
        for deb in ./*.deb; do dpkg-deb -x "$deb" all; done)
    icd "$drivers/lavapipe-25.json" "$root/all/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so"
}

# Mesa 26 of sid with everything that it needs, the C library included
fetch_26() {
    [ -e "$drivers/lavapipe-26.json" ] && return 0
    root=$drivers/sid
    apt_root "$root" sid
    APT_CONFIG=$root/apt.conf apt-get -qq -y install --download-only --no-install-recommends \
        mesa-vulkan-drivers libvulkan1 libgcc-s1 >/dev/null
    for deb in "$root"/cache/archives/*.deb; do dpkg-deb -x "$deb" "$root/all"; done
    icd "$drivers/lavapipe-26.json" "$root/all/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so"
}

# stack NAME COMMAND...: runs inknib with that driver
stack() {
    name=$1
    shift
    lib=usr/lib/x86_64-linux-gnu
    case $name in
        lavapipe-22) WGPU_BACKEND=vulkan VK_DRIVER_FILES=$(ls /usr/share/vulkan/icd.d/lvp_icd*.json | head -n 1) "$inknib" "$@" ;;
        lavapipe-25-*)
            WGPU_BACKEND=vulkan VK_DRIVER_FILES=$drivers/lavapipe-25.json LP_NATIVE_VECTOR_WIDTH=${name##*-} \
                LD_LIBRARY_PATH=$drivers/backports/all/$lib "$inknib" "$@" ;;
        lavapipe-26)
            WGPU_BACKEND=vulkan VK_DRIVER_FILES=$drivers/lavapipe-26.json \
                "$drivers/sid/all/$lib/ld-linux-x86-64.so.2" --library-path "$drivers/sid/all/$lib" "$inknib" "$@" ;;
        swiftshader) WGPU_BACKEND=vulkan VK_DRIVER_FILES=$drivers/swiftshader.json "$inknib" "$@" ;;
        gl) WGPU_BACKEND=gl "$inknib" "$@" ;;
        *) say "no such stack: $name"; exit 2 ;;
    esac
}

failed=
for name in $names; do
    say "== $name"
    case $name in
        lavapipe-25-*) fetch_25 ;;
        lavapipe-26) fetch_26 ;;
        swiftshader)
            ./x drivers
            library=$drivers/swiftshader/libvk_swiftshader.so
            [ -e "$library" ] || library=/usr/lib/chromium/libvk_swiftshader.so
            icd "$drivers/swiftshader.json" "$library" ;;
    esac
    if [ "$level" = --full ]; then
        mkdir -p "$out/full"
        stack "$name" test --full -o "$out/full/$name.md" >/dev/null || failed="$failed $name"
        continue
    fi
    stack "$name" test $level -o "$out/$name.json" >/dev/null || failed="$failed $name"
    [ -n "${NO_BENCH:-}" ] || stack "$name" bench --ops -o "$out/$name-bench.json" >/dev/null || failed="$failed $name-bench"
done
[ "$level" = --full ] || "$inknib" report "$out"/*.json -o "$out/index.html" -o "$out/README.md"
[ -z "$failed" ] || { say "did not pass:$failed"; exit 1; }
