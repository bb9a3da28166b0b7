#!/bin/sh
# In an image's install stage: core with the extra $1, and its torch, into /opt/core, without what serving does not read.
#
# TORCH_INDEX   where torch is found; empty: the default index
# CONSTRAINTS   exact versions, for requirements/constraints-cpu.txt; empty: what the wheel's ranges allow
set -eu

extra=$1
uv=/opt/uv/bin/uv
export VIRTUAL_ENV=/opt/core

"$uv" venv --python "python${PYTHON_VERSION}" "$VIRTUAL_ENV"
if [ -n "${TORCH_INDEX:-}" ]; then
    # Torch alone, so that no other package comes from an index that it was not meant to; of the extra's versions, or the next step
    # would replace it with the default index's.
    "$uv" pip install --no-deps --default-index "$TORCH_INDEX" --constraints "requirements/$extra.txt" \
        ${CONSTRAINTS:+--constraints "$CONSTRAINTS"} torch
fi
wheel=$(echo /dist/core-*.whl)
"$uv" pip install ${CONSTRAINTS:+--constraints "$CONSTRAINTS"} "core[$extra,s3] @ file://$wheel"

# Tests, headers, and tools to build against torch: 200 MB. torch_shm_manager is run by torch.multiprocessing.
packages=$(echo "$VIRTUAL_ENV"/lib/python*/site-packages)
rm -rf "$packages"/torch/test "$packages"/torch/include "$packages"/torch/share
find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete 2>/dev/null || true
find "$packages" -name '*.a' -delete
find "$packages" -type d -name tests -prune -exec rm -rf {} +
# Compiled here once, not by every container that starts; what packages carry for other Pythons, or as templates, stays as it is. So
# does transformers, 60 MB of bytecode that only a model without a fast tokenizer file would read a little of.
"$VIRTUAL_ENV/bin/python" -m compileall -qq -j 0 -x '/transformers/' "$packages" || true
"$VIRTUAL_ENV/bin/python" -c 'import core.llm, torch; print("core", core.__version__, "torch", torch.__version__)'
