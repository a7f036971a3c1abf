#!/usr/bin/env bash
# Checks the kernels and measures everything on a machine with an NVIDIA GPU and no network, in under eight minutes.
#
#   bench/gpu_check.sh pack                where there is a network: downloads the packages of bench/wheels.txt
#   bench/gpu_check.sh [--out FILE] [...]  where the GPU is: installs for this run what is missing, then checks
#   bench/gpu_check.sh --cpu --quick       anywhere: shows that the script runs to its end
#
# The machine needs Python 3.11 or newer with JAX, NumPy and SciPy. PYTHON names the interpreter (default: python3);
# PACK_FOR the version of Python that is packed for (default: 3.12, on x86-64). Nothing outside a scratch folder changes.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
WHEELS="$ROOT/.wheels"
PYTHON="${PYTHON:-python3}"
LARGEST=60 # MiB
SCRATCH="$(mktemp -d)"
trap 'rm -rf "$SCRATCH"' EXIT

pack() {
  local platform options=()
  for platform in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    options+=(--platform "${platform}_x86_64")
  done
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version "${PACK_FOR:-3.12}" "${options[@]}" --dest "$SCRATCH/wheels" --requirement "$ROOT/bench/wheels.txt"
  local size
  size="$(du -sm "$SCRATCH/wheels" | cut -f1)"
  if [ "$size" -gt "$LARGEST" ]; then
    echo "got $size MiB of wheels; at most $LARGEST are allowed: take something out of bench/wheels.txt" >&2
    exit 1
  fi
  rm -rf "$WHEELS"
  mv "$SCRATCH/wheels" "$WHEELS"
  echo "packed $(find "$WHEELS" -name '*.whl' | wc -l) wheels, $size MiB, in $WHEELS"
}

add_packages() {
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$WHEELS" --no-deps --no-compile \
    --no-cache-dir --upgrade --target "$SCRATCH/packages" "$@"
}

# Whether everything can be imported that the scripts import.
complete() { "$PYTHON" -P -c 'import einops, flax.nnx, optax, rich, sklearn.datasets, tyro' 2>"$SCRATCH/missing"; }

# The packages that are missing or too old; all of them where the mixture does not import.
install_packages() {
  local missing
  mapfile -t missing < <("$PYTHON" -P "$ROOT/bench/wheels.py" | sed '/^$/d')
  if [ "${#missing[@]}" -gt 0 ] && [ ! -d "$WHEELS" ]; then
    echo "got no wheels in $WHEELS for ${missing[*]}: 'bench/gpu_check.sh pack' fetches them where there is a network"
  elif [ "${#missing[@]}" -gt 0 ]; then
    echo "from $WHEELS: ${missing[*]}"
    add_packages "${missing[@]}" || echo "cannot install them for $("$PYTHON" --version)"
  fi
  complete && return
  if [ -d "$WHEELS" ]; then
    add_packages --requirement "$ROOT/bench/wheels.txt" || true
    complete && return
  fi
  echo "some steps will fail: $(tail -1 "$SCRATCH/missing")"
}

if [ "${1:-}" = pack ]; then
  pack
  exit
fi
export XDG_CACHE_HOME="$SCRATCH/cache" # what steps find out about kernels as they first use them
export PYTHONPATH="$ROOT:$SCRATCH/packages${PYTHONPATH:+:$PYTHONPATH}"
install_packages
"$PYTHON" -P -m bench.gpu_check "$@"
