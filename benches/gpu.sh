#!/usr/bin/env bash
# Everything that is measured on an NVIDIA GPU, in one command; fills docs/gpu.md, which says how to prepare and what is measured.
#
#   benches/gpu.sh                          all groups, LLaMA2-7B's 32 blocks: 45 GB of disk, 30 GB of memory, most of an hour
#   benches/gpu.sh --layers 4               a shorter language model; the tables say so
#   benches/gpu.sh --only 'facts cuda-fp16' some groups; what is measured already is kept, and a group goes on where it stopped
#   benches/gpu.sh --dry-run                every step on the CPU with a tiny model: shows that the script works, and no figure
#   benches/gpu.sh --list                   the groups, in their order: the most valuable first
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PEERS=$ROOT/benches/peers

GROUPS_ALL=(facts rates cuda-fp16 torch fixtures tensorrt-fp16 tensorrt-rtx-fp16 reference cuda-fp32 tensorrt-int8
  tensorrt-rtx-int8 cuda-int8 torch-again)
only=() layers=32 dry='' again='' keep='' card=0 limit=1800 rows=20 python='' python_libs='' write=1 forms='eager compile graphs'
WORK='' RESULTS='' bin=$ROOT/target/release ort=$ROOT/.ort
command="benches/gpu.sh${*:+ $*}"

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  cat <<END

  --work DIR       checkpoint, bundles and caches (target/gpu/work); keep it between calls
  --results DIR    one record a measurement, and table.md (target/gpu/results)
  --keep           keep every bundle; else one is removed when its groups are done (needs 80 GB instead of 45)
  --again          measure the groups anew
  --rows N         scans a run of ours, and passes of PyTorch, from which the median is taken ($rows)
  --forms LIST     PyTorch's forms: eager, compile, graphs ('$forms')
  --card N         the card's number in nvidia-smi ($card)
  --limit SECONDS  end a process that takes longer ($limit)
  --python FILE    the Python that has torch and numpy (BENCH_PYTHON, else .venv-bench/bin/python, else python3)
  --python-libs    give ONNX Runtime the CUDA libraries in that Python's nvidia packages, in place of those of \`make gpu\`
  --bin DIR        the programs (target/release)
  --no-write       leave docs/gpu.md alone
END
}

die() { printf 'gpu.sh: %s\n' "$*" >&2; exit 1; }
say() { printf '[%5d s] %s\n' "$SECONDS" "$*" >&2; }

while (($#)); do
  case $1 in
    --only) read -ra only <<<"${2//,/ }"; shift ;;
    --layers) layers=$2; shift ;;
    --dry-run) dry=1 ;;
    --work) WORK=$2; shift ;;
    --results) RESULTS=$2; shift ;;
    --keep) keep=1 ;;
    --again) again=1 ;;
    --rows) rows=$2; shift ;;
    --forms) forms=$2; shift ;;
    --card) card=$2; shift ;;
    --limit) limit=$2; shift ;;
    --python) python=$2; shift ;;
    --python-libs) python_libs=1 ;;
    --bin) bin=$2; shift ;;
    --no-write) write='' ;;
    --list) printf '%s\n' "${GROUPS_ALL[@]}"; exit 0 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "no such option: $1" ;;
  esac
  shift
done

((${#only[@]})) || only=("${GROUPS_ALL[@]}")
for group in "${only[@]}"; do
  [[ " ${GROUPS_ALL[*]} " == *" $group "* ]] || die "no group \`$group\`: there are ${GROUPS_ALL[*]}"
done
[[ $layers =~ ^[1-9][0-9]*$ && $rows =~ ^[1-9][0-9]*$ ]] || die '--layers and --rows take a number'
((rows >= 5)) || die '--rows takes 5 or more: the first three are not counted'

# A dry run must not be taken for a measurement: it has folders of its own and leaves the document alone.
place=$ROOT/target/gpu${dry:+-dry}
preset=full torch_device=cuda dtype=fp16 size=8192
if [[ $dry ]]; then
  preset=tiny torch_device=cpu dtype=fp32 size=256 layers=2 write=''
  rows=5
fi
WORK=${WORK:-$place/work}/$preset-$layers RESULTS=${RESULTS:-$place/results}
mkdir -p "$WORK" "$RESULTS"
WORK=$(cd "$WORK" && pwd) RESULTS=$(cd "$RESULTS" && pwd)
export WORK RESULTS
export TORCHINDUCTOR_CACHE_DIR=$WORK/inductor TRITON_CACHE_DIR=$WORK/triton
export CUDA_VISIBLE_DEVICES=$card CUDA_DEVICE_ORDER=PCI_BUS_ID PYTHONUNBUFFERED=1

if [[ -z $python ]]; then
  python=${BENCH_PYTHON:-$ROOT/.venv-bench/bin/python}
  [[ -x $python ]] || python=$(command -v python3) || die 'no Python: name one with --python'
fi
for program in ba-export ba-infer examples/synthesize_checkpoint; do
  [[ -x $bin/$program ]] || die "$bin/$program is missing: cargo build --release --bins --example synthesize_checkpoint"
done
"$python" -c 'import sys, numpy; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  || die "$python is older than 3.11 or has no numpy: make bench-venv, or name another with --python"
has_target=''
if [[ $("$bin/ba-export" --help) == *--target* ]]; then has_target=1; fi

if [[ ! $dry ]]; then
  [[ $has_target ]] || die "$bin/ba-export has no --target: build the programs anew"
  command -v nvidia-smi >/dev/null || die 'there is no nvidia-smi: this needs an NVIDIA card and its driver (--dry-run does not)'
  nvidia-smi -i "$card" >/dev/null || die "nvidia-smi finds no card $card"
fi

# Results of one size only: a table never mixes them.
of="full size, the language model (LLaMA2-7B's geometry) with $layers of 32 blocks"
if [[ $dry ]]; then of='tiny'; fi
[[ ! -e $RESULTS/of || $(<"$RESULTS/of") == "$of" ]] || die "$RESULTS holds results of $(<"$RESULTS/of"): give other --results"
printf '%s\n' "$of" >"$RESULTS/of"
printf '%s\n' "$command" >>"$RESULTS/commands"

# Libraries for ours alone: torch has its own.
libs=()
if [[ $python_libs ]]; then
  while read -r folder; do libs+=("$folder"); done < <("$python" - <<'END'
import pathlib, site, sys
for place in dict.fromkeys(site.getsitepackages() + [site.getusersitepackages()] + sys.path):
    for folder in sorted(pathlib.Path(place).glob("nvidia/*/lib")):
        print(folder.resolve())
END
  )
  ((${#libs[@]})) || die "$python has no nvidia packages with libraries"
fi
library_path=$(IFS=:; printf '%s' "${libs[*]:-}")
[[ -z $library_path ]] || library_path+=${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
ours() { # RECORD OPTIONS... -- COMMAND...
  env ${library_path:+LD_LIBRARY_PATH="$library_path"} "$python" "$PEERS/gpu_run.py" --card "$card" --limit "$limit" "$@"
}
peer() { "$python" "$PEERS/gpu_run.py" --card "$card" --limit "$limit" "$@"; }

# Whether a record is there of something that went well. What failed is tried again.
done_well() { [[ -s $1 ]] && ! grep -q '"error"' "$1"; }
measured() { done_well "$RESULTS/$1.json"; }
forget() { # PATTERN...
  [[ $again ]] || return 0
  local pattern
  for pattern in "$@"; do
    # shellcheck disable=SC2086 # a pattern is meant
    rm -f "$RESULTS"/$pattern
  done
}

checkpoint() {
  checkpoint=$WORK/checkpoint
  if [[ -e $checkpoint/whole ]]; then return; fi
  say "writing a checkpoint of random weights: $preset, $layers blocks"
  rm -rf "$checkpoint"
  "$bin/examples/synthesize_checkpoint" --preset "$preset" --text-layers "$layers" -o "$checkpoint" 2>"$WORK/checkpoint.log" \
    || { cat "$WORK/checkpoint.log" >&2; return 1; }
  cp "$checkpoint/config.json" "$RESULTS/model.json"
  cp "$checkpoint/llama/config.json" "$RESULTS/llama.json"
  touch "$checkpoint/whole"
}

cohorts() {
  cohorts=$WORK/cohorts-$rows
  if [[ -e $cohorts/whole ]]; then return; fi
  "$python" "$PEERS/gpu_cases.py" scans "$ROOT/examples/demo/mni152_t1.nii.gz" "$cohorts" "$rows" 256 512
  touch "$cohorts/whole"
}

# Symmetric int8 of activations needs scans and reports to calibrate on, of the kind that is read later; weights alone need none.
calibration() { # PRECISION
  folder=$WORK/calibration-$1
  mkdir -p "$folder"
  if [[ $1 == int8-tensorrt ]]; then
    cohorts
    # Those of the first row are what parity is judged on.
    cp "$ROOT"/examples/demo/calibration/{mni152_t1_5mm,noise}.{nii.gz,txt} "$cohorts"/report-256-[12].txt "$folder"
  fi
}

export_flags() { # PRECISION
  flags=(--quantize "${1%%-*}")
  if [[ $1 == fp32 ]]; then flags=(--quantize none); fi
  # A dry run may be of programs that do not know it yet.
  if [[ $1 == int8-* && $has_target ]]; then flags+=(--target "${1#int8-}"); fi
}

bundle() { # PRECISION
  bundle=$WORK/bundle-$1
  checkpoint
  if [[ -e $bundle/bundle.json ]]; then return; fi
  calibration "$1"
  export_flags "$1"
  say "exporting $1"
  ours "$RESULTS/export-$1.json" -- "$bin/ba-export" --json --quiet "${flags[@]}" --model "$checkpoint" --calibration "$folder" \
    -o "$bundle"
}

# Bundles are what fills the disk.
release() { # PRECISION
  [[ $keep ]] || rm -rf "$WORK/bundle-$1"
}

device() { if [[ $dry ]]; then echo cpu; else echo "$1"; fi; }

infer() { # RECORD DEVICE OPTIONS-OF-gpu_run... -- ARGUMENTS...
  local record=$RESULTS/$1.json device options
  device=$(device "$2")
  options=(--device "$device")
  shift 2
  while [[ $1 != -- ]]; do options+=("$1"); shift; done
  shift
  # Features are what the model makes of a scan: kept, they would answer in its place.
  rm -rf "$cache/features"
  ours "${options[@]}" "$record" -- "$bin/ba-infer" --json --device "$device" --cache "$cache" "$@"
}

# Every tensor of the demo's scan with a report of 256 tokens, on the CPU in float32.
reference_tensors() { # FOLDER-NAME BUNDLE SCAN REPORT
  local file=$WORK/tensors/$1-reference.safetensors
  if [[ -s $file ]]; then return; fi
  mkdir -p "$WORK/tensors"
  cache=$WORK/cache-reference
  infer "reference-$1" cpu -- "$3" --report "$4" --bundle "$2" --save-tensors "$file"
}

parity() { # WAY MODEL TOKENS?
  local way=$1 model=$2 found=$WORK/tensors/$2-$1.safetensors expected=$WORK/tensors/$2-reference.safetensors
  [[ -s $found && -s $expected ]] || return 0
  if measured "parity-$way-$model"; then return; fi
  say "$way: parity on $model"
  "$python" "$PEERS/gpu_parity.py" "$RESULTS/parity-$way-$model.json" "$expected" "$found" "${@:3}" \
    || { printf '{"error":"the tensors cannot be compared"}\n' >"$RESULTS/parity-$way-$model.json"; return 1; }
}

# A tiny model first: what a device lacks is told in a second, before a big bundle is made.
probe() { # DEVICE
  if measured "probe-$1"; then return; fi
  local small=$WORK/bundle-probe
  if [[ ! -e $small/bundle.json ]]; then
    mkdir -p "$WORK/calibration-none"
    "$bin/ba-export" --quiet --quantize fp16 --model "$ROOT/examples/demo/checkpoint" --calibration "$WORK/calibration-none" \
      -o "$small" >/dev/null
  fi
  cache=$WORK/cache-probe
  infer "probe-$1" "$1" -- "$ROOT/examples/demo/mni152_t1.nii.gz" --report "$ROOT/examples/demo/report.txt" --bundle "$small"
}

# A way to compute: starts, steady rows of both lengths, and all tensors. Starts come first: the cold one makes the engines.
way() { # WAY DEVICE PRECISION
  local way=$1 device=$2 precision=$3 failed=0 scan report
  forget "start-$way-*" "time-$way-*" "alone-$way-*" "tensors-$way.*" "parity-$way-full.json" "probe-$device.*"
  [[ ! $again ]] || rm -f "$WORK/tensors/full-$way.safetensors"
  if ! probe "$device"; then
    say "$way: not run, for $device cannot be used"
    # That a device is not there is an answer; all else is a failure.
    grep -qE 'device\.unavailable|asked for' "$RESULTS/probe-$device.json"
    return
  fi
  bundle "$precision"
  cohorts
  cache=$WORK/cache-$way scan=$cohorts/scan-0.nii.gz report=$cohorts/report-256-0.txt
  if ! measured "start-$way-cold"; then
    say "$way: cold start"
    rm -rf "$cache"
    # The hashing of files that were written this moment is not remembered.
    sleep 3
    infer "start-$way-cold" "$device" --cold "$bundle" -- "$scan" --report "$report" --bundle "$bundle" || failed=1
  fi
  if ((!failed)) && ! measured "start-$way-warm"; then
    say "$way: warm start"
    infer "start-$way-warm" "$device" -- "$scan" --report "$report" --bundle "$bundle" || failed=1
  fi
  for tokens in 256 512; do
    if ((!failed)) && ! measured "time-$way-$tokens"; then
      say "$way: $rows scans with reports of $tokens tokens"
      infer "time-$way-$tokens" "$device" -- --list "$cohorts/cohort-$tokens.csv" --mode resident --bundle "$bundle" || failed=1
    fi
    # Report and image may be computed at once, which makes each slower: on one thread of the processor they are not.
    if ((!failed)) && ! measured "alone-$way-$tokens"; then
      say "$way: the same, a stage at a time"
      infer "alone-$way-$tokens" "$device" -- --list "$cohorts/cohort-$tokens.csv" --mode resident --threads 1 --bundle "$bundle" \
        || failed=1
    fi
  done
  if ((!failed)) && [[ ! -s $WORK/tensors/full-$way.safetensors ]]; then
    mkdir -p "$WORK/tensors"
    infer "tensors-$way" "$device" -- "$scan" --report "$report" --bundle "$bundle" \
      --save-tensors "$WORK/tensors/full-$way.safetensors" || failed=1
  fi
  parity "$way" full 256 || failed=1
  # Engines are as large as the weights.
  ((failed)) || [[ $keep ]] || rm -rf "$cache"
  return $failed
}

# Small models from PyTorch's fixtures and the demo, in every form that the device takes.
fixtures() {
  local folder=$WORK/fixtures failed=0 model form device precision
  forget 'parity-*-fixture-*.json' 'fixture-*'
  [[ -e $folder ]] || "$python" "$PEERS/gpu_cases.py" fixtures "$folder"
  for model in tiny tiny-gqa-bf16-sharded tiny-bottleneck3d demo; do
    fixture_bundle "$model" fp32 || { failed=1; continue; }
    reference_tensors "fixture-$model" "$bundle" "$folder/$model/scan.nii.gz" "$folder/$model/report.txt" || { failed=1; continue; }
    for form in cuda/fp16 cuda/fp32 tensorrt/fp16 tensorrt-rtx/fp16 cuda/int8-cuda tensorrt/int8-tensorrt tensorrt-rtx/int8-tensorrt; do
      IFS=/ read -r device precision <<<"$form"
      fixture "$model" "$device" "$precision" || failed=1
    done
  done
  return $failed
}

fixture_bundle() { # MODEL PRECISION
  local calibration=$ROOT/examples/demo/calibration
  bundle=$folder/$1-$2
  if [[ -e $bundle/bundle.json ]]; then return; fi
  export_flags "$2"
  ours "$RESULTS/fixture-export-$1-$2.json" -- "$bin/ba-export" --json --quiet "${flags[@]}" --model "$folder/$1" \
    --calibration "$calibration" -o "$bundle"
}

fixture() { # MODEL DEVICE PRECISION
  local way=$2-${3%%-*} files=("$folder/$1/scan.nii.gz" --report "$folder/$1/report.txt")
  if measured "parity-$way-fixture-$1" || ! probe "$2" 2>/dev/null; then return 0; fi
  fixture_bundle "$1" "$3" || return 1
  cache=$WORK/cache-fixtures/$1-$way
  infer "fixture-$1-$way" "$2" -- "${files[@]}" --bundle "$bundle" --save-tensors "$WORK/tensors/fixture-$1-$way.safetensors" || return 1
  parity "$way" "fixture-$1"
}

reference() {
  if [[ -s $WORK/tensors/full-reference.safetensors ]]; then return; fi
  bundle fp32
  cohorts
  say 'reference: float32 on the CPU'
  reference_tensors full "$bundle" "$cohorts/scan-0.nii.gz" "$cohorts/report-256-0.txt"
  local way
  # What ran before the reference was there.
  for way in cuda-fp16 tensorrt-fp16 tensorrt-rtx-fp16 tensorrt-int8 tensorrt-rtx-int8 cuda-int8 cuda-fp32; do
    parity "$way" full 256
  done
}

torch_model() { # SUFFIX
  local form failed=0
  checkpoint
  cohorts
  for form in $forms; do
    forget "torch-$form$1.json" "torch-$form$1-run.json"
    measured "torch-$form$1" && measured "torch-$form$1-run" && continue
    say "PyTorch, $form$1"
    peer "$RESULTS/torch-$form$1-run.json" -- "$python" "$PEERS/torch_gpu.py" model "$RESULTS/torch-$form$1.json" "$checkpoint" \
      "$cohorts" "$form" --device "$torch_device" --dtype "$dtype" --times "$rows" || failed=1
  done
  return $failed
}

group() { # NAME
  case $1 in
    facts) "$python" "$PEERS/gpu_facts.py" "$RESULTS/facts.json" "$card" "$ort" "${libs[@]}" ;;
    rates)
      forget 'rates*.json'
      measured rates || peer "$RESULTS/rates-run.json" -- "$python" "$PEERS/torch_gpu.py" rates "$RESULTS/rates.json" \
        --device "$torch_device" --size "$size"
      ;;
    torch) torch_model '' ;;
    torch-again) torch_model -again ;;
    fixtures) fixtures ;;
    reference) reference ;;
    *-int8) way "$1" "${1%-int8}" "int8-$(case $1 in cuda*) echo cuda ;; *) echo tensorrt ;; esac)" ;;
    *) way "$1" "${1%-*}" "${1##*-}" ;;
  esac
}

table() {
  "$python" "$PEERS/gpu_table.py" "$RESULTS" ${dry:+--dry} ${write:+--write "$ROOT/docs/gpu.md"} >"$RESULTS/table.part"
  mv "$RESULTS/table.part" "$RESULTS/table.md"
}

summary=() status=0
for name in "${GROUPS_ALL[@]}"; do
  [[ " ${only[*]} " == *" $name "* ]] || continue
  begun=$SECONDS verdict=ok
  say "$name"
  # What fails ends its group and no other. (As a condition, the subshell would go on after an error.)
  set +e
  (set -e; group "$name")
  code=$?
  set -e
  ((code == 0)) || verdict=failed status=1
  case $name:$verdict in
    tensorrt-rtx-fp16:ok) release fp16 ;;
    tensorrt-rtx-int8:ok) release int8-tensorrt ;;
    cuda-int8:ok) release int8-cuda ;;
    cuda-fp32:ok) release fp32 ;;
  esac
  summary+=("$(printf '%-20s %-7s %5d s' "$name" "$verdict" $((SECONDS - begun)))")
  table || status=1
done
printf '\n' >&2
printf '%s\n' "${summary[@]}" "$(printf '%-20s %-7s %5d s' all "$( ((status)) && echo failed || echo ok)" $SECONDS)" >&2
printf 'table: %s\n' "${RESULTS/#$ROOT\//}/table.md" >&2
exit $status
