#!/usr/bin/env bash
# Every test: scripts/test.sh COMMAND..., as `make test` does with `cargo test`. First says what this machine lacks and names
# it in BA_SKIP (tests/support/src/oracle.rs has the names); at the end lists the tests that were skipped for it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

skip=${BA_SKIP:-}
leave_out() { # NAME WHY
  case ",$skip," in *",$1,"*) return ;; esac
  skip=${skip:+$skip,}$1
  printf 'BA_SKIP=%s: %s\n' "$1" "$2" >&2
}

# As make left them: it has said why where an environment could not be installed.
[ -n "${BA_ORT119_PYTHON:-}" ] || [ -e .venv-ort119/ready ] ||
  leave_out ort119 "Microsoft's training runtime could not be installed (make ort119)"
[ -n "${BA_TRT_PYTHON:-}" ] || [ -e .venv-trt/ready ] ||
  leave_out trt 'TensorRT for RTX could not be installed (make trt)'
[ -n "${BA_TORCH_PYTHON:-}" ] ||
  leave_out torch 'PyTorch is gigabytes; BA_TORCH_PYTHON can name a Python that has it'
[ -e .ort/gpu ] ||
  leave_out gpu "ONNX Runtime's CUDA provider is gigabytes with its libraries; make gpu fetches it"
[ -e "${BA_SHARED:-../shared}" ] ||
  leave_out shared 'the large recorded fixtures are not in the repository; BA_SHARED can name their folder'
export BA_SKIP=$skip

mkdir -p target
export BA_SKIPPED=$PWD/target/skipped.txt
rm -f "$BA_SKIPPED"
"$@"
status=$?
if [ -s "$BA_SKIPPED" ]; then
  printf '\nskipped, %d in all:\n' "$(sort -u "$BA_SKIPPED" | wc -l)"
  sort -u "$BA_SKIPPED" | awk -F '\t' '{ printf "  %-8s %s: %s\n", $1, $2, $3 }'
else
  printf '\nskipped: nothing\n'
fi
exit $status
