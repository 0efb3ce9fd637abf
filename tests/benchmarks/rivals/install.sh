#!/bin/sh
# Put other authors' packages into a folder of their own, for the Python that runs the comparison:
#
#     sh tests/benchmarks/rivals/install.sh FOLDER
#     PYTHONPATH=FOLDER python -m tests.benchmarks.rivals ...
#
# Needs a C++ compiler; of arctic-inference only the suffix trees are built, without vLLM or CUDA.
set -u
folder=${1:?"usage: install.sh FOLDER"}
python=${PYTHON:-python}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

aded() {
  "$python" -m pip install --quiet --no-deps --target "$folder" draftretriever==0.1.1
}

dejavuu() { # says that it needs Python 3.13; its drafters run on 3.11, too
  "$python" -m pip install --quiet --no-deps --ignore-requires-python --target "$folder" \
    dejavuu==0.2.0 loguru
}

suffix_decoding() (
  set -e
  "$python" -m venv "$build/tools"
  "$build/tools/bin/pip" install --quiet nanobind==2.9.2 cmake ninja
  # the metadata of the source is made by a script that imports setuptools and torch
  "$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: \
    --dest "$build" arctic-inference==0.3.0
  tar -xzf "$build"/arctic_inference-0.3.0.tar.gz -C "$build"
  source=$build/arctic_inference-0.3.0
  PATH=$build/tools/bin:$PATH
  cmake -S "$source/csrc/suffix_decoding" -B "$build/made" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$build/tools/bin/python"
  cmake --build "$build/made"
  package=$folder/arctic_inference
  mkdir -p "$package/suffix_decoding"
  cp "$source/LICENSE" "$source/arctic_inference/__init__.py" "$package"
  cp "$source"/arctic_inference/suffix_decoding/__init__.py \
    "$source"/arctic_inference/suffix_decoding/cache.py \
    "$build"/made/_C.*.so "$package/suffix_decoding"
)

mkdir -p "$folder"
for each in aded dejavuu suffix_decoding; do
  $each # not as a condition, in which `set -e` means nothing
  case $? in
    0) echo "$each: installed" ;;
    *) echo "$each: not installed, and will be left out" >&2 ;;
  esac
done
