#!/bin/sh
# Everything that only a real GPU can show, in one go and under ten minutes: is it right (`inknib test`), which kernels are fastest on it
# (`inknib tune`, kept for what follows), how near its own ceilings is each op (`inknib bench --ops`), how fast are language models and a UNet of true shapes, and llama.cpp's and stable-diffusion.cpp's
# Vulkan backends beside them where they are there. Random weights of true shapes; nothing is fetched. Needs a Vulkan driver and
# Python 3 (numpy for the UNet).
#
#   benches/gpu.sh [OUTDIR]        default: target/gpu
#
# INKNIB        the binary (default: target/release/inknib, which is built if it is missing)
# LEVEL         of the test (default: --full, some 8000 cases): --quick, or nothing for the usual one
# SIZES         of pictures (default: 256,512)
# MODELS        of tools/synthetic_llm.py, none if empty (default: smollm2-135m llama-3.2-1b llama-3.1-8b; the last takes 16 GB of disk)
# LLAMA_BENCH   llama.cpp's llama-bench with the Vulkan backend (llama-quantize beside it); GGUF_DIR may hold MODEL-Q4_0.gguf of the
#               same shapes, else they are made, which takes numpy and gguf from PyPI and some minutes more. Each model is measured
#               after ours.
# SD            stable-diffusion.cpp's sd with the Vulkan backend, and SD_MODEL, a Q4_0 file of Stable Diffusion 1.5
set -u
cd "$(dirname "$0")/.."
out=${1:-target/gpu}
inknib=${INKNIB:-target/release/inknib}
models=${MODELS-smollm2-135m llama-3.2-1b llama-3.1-8b}
scratch=${TMPDIR:-/tmp}/inknib-gpu
mkdir -p "$out" "$scratch"
[ -x "$inknib" ] || cargo build --release --locked || exit 1
failed=

say() { printf '%s\n' "$*" >&2; }
# step NAME COMMAND...: its output into OUTDIR/NAME.log, its name among the failed if it fails
step() {
    step=$1
    shift
    say "== $step: $*"
    "$@" >"$out/$step.log" 2>&1 && return
    failed="$failed $step"
    tail -n 5 "$out/$step.log" >&2
    return 1
}

# make NAME FOLDER COMMAND...: the command with FOLDER behind it, which appears when it is complete
make() {
    name=$1 made=$2
    shift 2
    [ -e "$made" ] && return
    rm -rf "$made.part"
    step "$name" "$@" "$made.part" && mv "$made.part" "$made"
}

step doctor "$inknib" doctor
step test "$inknib" test ${LEVEL---full} -o "$out/test.json" -o "$out/test.md"
step tune "$inknib" tune
step ops "$inknib" bench --ops -o "$out/ops.json" -o "$out/ops.md" -o "$out/ops.svg"
for model in $models; do
    folder=$scratch/$model
    make "$model-make" "$folder" python3 tools/synthetic_llm.py "$model" || continue
    for weights in int4-g32-uniform-absmax fp16; do
        name=$model-${weights%%-*}
        step "$name" "$inknib" bench -m "$folder" --weights $weights -p 512 -n 128 -o "$out/$name.json" -o "$out/$name.md"
    done
    if [ -n "${LLAMA_BENCH:-}" ]; then
        gguf=${GGUF_DIR:-$scratch}/$model-Q4_0.gguf
        if [ ! -e "$gguf" ]; then
            step "$model-gguf" python3 tools/synthetic_gguf.py "$folder" "$scratch/$model-F16.gguf"
            step "$model-q4_0" "$(dirname "$LLAMA_BENCH")/llama-quantize" --pure "$scratch/$model-F16.gguf" "$gguf" Q4_0
            rm -f "$scratch/$model-F16.gguf"
        fi
        step "$model-llama.cpp" "$LLAMA_BENCH" -m "$gguf" -ngl 99 -p 512 -n 128 -o md
    fi
    case $model in *8b) rm -rf "$folder" ;; esac
done
if python3 -c 'import numpy' 2>/dev/null; then
    folder=$scratch/sd15
    make sd15-make "$folder" python3 tools/synthetic_sd.py sd15 && step sd15 "$inknib" bench -m "$folder" --size "${SIZES:-256,512}" --weights int4,fp16 --batch 1,2 --no-vae -o "$out/sd15.json" -o "$out/sd15.md"
else
    say "skipped: no numpy, so no UNet"
fi
if [ -n "${SD:-}" ] && [ -n "${SD_MODEL:-}" ]; then
    step sd.cpp "$SD" -m "$SD_MODEL" -p 'a lighthouse' -H 512 -W 512 --steps 10 -o "$scratch/sd.png"
fi
"$inknib" report "$out"/test.json "$out"/ops.json -o "$out/index.html" -o "$out/README.md" || failed="$failed report"
cat "$out"/ops.md "$out"/*-int4.md "$out"/*-fp16.md "$out"/sd15.md 2>/dev/null
[ -z "$failed" ] || { say "did not pass:$failed (see $out/NAME.log)"; exit 1; }
