#!/usr/bin/env bash
# Tests and figures on a bare x86-64 machine with a CUDA device, its own torch, and no network:
#
#     bash tests/gpu.sh [OUT]          within 8 minutes; OUT (gpu-out) gets the figures, a JSON file a step
#
# What that machine lacks is brought along as wheels in .wheels (WHEELS names another folder; git ignores it).
# For Python 3.12, with torch, torchvision, scipy, OpenCV, numba, typer and pytest there, 42 MB:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp -d .wheels \
#         --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
#         av==18.1.0 zarr==3.1.6 numcodecs==0.17.1 donfig google-crc32c pydantic==2.14.4 pydantic-core==2.50.5 \
#         annotated-types typing-inspection smplx rich==14.3.4 lightning-fabric roma
#
# PyTorch3D fits one torch only. Where its source lies in .wheels/pytorch3d (a checkout, without docs and tests),
# the rasteriser alone is compiled, for the torch that is there: 1 minute. Otherwise its rows say that it is missing.
# The detector needs onnxruntime-gpu, 300 MB with the CUDA of its own choice, which is not brought along.
# PROFILE=1 prints where the time of each figure goes; STEPS="tests fit" runs these alone.
# Without a device the CUDA tests are skipped and the figures are a rehearsal on the processor.
set -u
cd "$(dirname "$0")/.."
wheels=${WHEELS:-.wheels}
out=${1:-gpu-out}
python=${PYTHON:-python3}
site=$(mktemp -d)
mkdir -p "$out"
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR="$site/numba"
profile=${PROFILE:+--profile}
begun=$SECONDS

step() { # name, seconds, command: runs it within the time, says how long it took and how it ended
    local name=$1 limit=$2 from=$SECONDS left=$((begun + 450 - SECONDS)) status
    shift 2
    if [ "$name" != table ] && [ "$limit" -gt "$left" ]; then limit=$((left > 1 ? left : 1)); fi
    case " ${STEPS:-$name} wheels table " in *" $name "*) ;; *) return ;; esac
    echo "== $name"
    timeout --kill-after=5 "$limit" "$@"
    status=$?
    echo "== $name: $([ $status = 0 ] && echo done || echo "FAILED ($status)") in $((SECONDS - from)) s"
}

if compgen -G "$wheels/*.whl" >/dev/null; then
    step wheels 90 "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl
fi
# The project is used where it lies; its version is asked for.
mkdir -p "$site/multispin-0.dist-info"
printf 'Metadata-Version: 2.1\nName: multispin\nVersion: 0\n' >"$site/multispin-0.dist-info/METADATA"

cuda=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))')
if [ "$cuda" = 1 ] && [ -d "$wheels/pytorch3d/pytorch3d" ]; then
    step pytorch3d 170 "$python" tests/pytorch3d_rasteriser.py "$wheels/pytorch3d" "$site"
fi
cuda_tests=$(grep -lE '@pytest\.mark\.cuda|pytestmark = pytest\.mark\.cuda' tests/test_*.py)
# Other versions of packages may warn of things that those of pyproject.toml do not.
# shellcheck disable=SC2086
REQUIRE_CUDA=$cuda step tests 200 "$python" -m pytest -q -m cuda -W default -p no:cacheprovider $cuda_tests
step fit 100 "$python" tests/benchmarks/gpu.py fit --json "$out/fit.json" $profile
step regress 80 "$python" tests/benchmarks/gpu.py regress --json "$out/regress.json" $profile
step detect 40 "$python" tests/benchmarks/gpu.py detect --json "$out/detect.json"
step train 120 "$python" tests/benchmarks/gpu.py train --json "$out/train.json" $profile
step render 90 "$python" tests/benchmarks/gpu.py render --json "$out/render.json"
step table 30 "$python" tests/benchmarks/gpu.py table "$out"/{fit,regress,detect,train,render}.json --json "$out/gpu.json"
echo "== all in $((SECONDS - begun)) s"
rm -rf "$site"
