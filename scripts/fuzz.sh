#!/usr/bin/env bash
# Runs fuzz targets with libFuzzer, one after the other: scripts/fuzz.sh SECONDS [TARGET...]; `make fuzz`.
# Starts from fuzz/corpus/TARGET and what earlier runs found (target/fuzz/corpus/TARGET); crashes go to
# target/fuzz/crashes. Needs a C++ compiler, for libFuzzer, and no nightly toolchain: coverage comes from options that
# the stable compiler has. The library's arithmetic is checked; its memory is, by Rust (no sanitizer is linked).
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?usage: scripts/fuzz.sh SECONDS [TARGET...]}
shift
command -v "${CXX:-c++}" >/dev/null ||
  { echo 'fuzzing needs a C++ compiler (Debian, Ubuntu: apt install g++), or name one with CXX=' >&2; exit 1; }
if [ $# = 0 ]; then
  set -- fuzz/src/bin/*.rs
  set -- "${@##*/}"
  set -- "${@%.rs}"
fi

host=$(rustc -vV | sed -n 's/^host: //p')
build=target/fuzz
coverage=(-Cpasses=sancov-module -Ccodegen-units=1)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  coverage+=("-Cllvm-args=-sanitizer-coverage-$option")
done
# With --target, build scripts and macros are not instrumented.
RUSTFLAGS="${coverage[*]}" CARGO_INCREMENTAL=0 "${CARGO:-cargo}" build --release --quiet --package brain-adapter-fuzz \
  --bins --target "$host" --target-dir "$build"

mkdir -p "$build/crashes" "$build/logs"
failed=0
printf '%-20s %12s %10s %9s %8s  %s\n' target executions per_second coverage rss_MB result
for target; do
  mkdir -p "$build/corpus/$target"
  log=$build/logs/$target result=ok
  # One crash does not end the habit: the other targets run too.
  "$build/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len="${MAX_LEN:-16384}" \
    -print_final_stats=1 -verbosity=1 -artifact_prefix="$build/crashes/$target-" \
    "$build/corpus/$target" "fuzz/corpus/$target" >"$log" 2>&1 || { result="FAILED: see $log"; failed=1; }
  stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
  printf '%-20s %12s %10s %9s %8s  %s\n' "$target" "$(stat number_of_executed_units)" "$(stat average_exec_per_sec)" \
    "$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -c6-)" "$(stat peak_rss_mb)" "$result"
done
exit $failed
