#!/usr/bin/env bash
# The entry point of the SageMaker image. Options of `core serve` come from the endpoint's environment:
#
#   SM_CORE_MODEL=org/name              what to serve; default: /opt/ml/model, where SageMaker puts the model's archive
#   SM_CORE_MAX_MODEL_LEN=4096          --max-model-len=4096
#   SM_CORE_ENABLE_PREFIX_CACHING=false --no-enable-prefix-caching
#
# SageMaker runs the image with the argument `serve`, sends to /ping and /invocations on port 8080, and ends it with SIGTERM.
set -euo pipefail

arguments=()
for name in "${!SM_CORE_@}"; do
  [[ $name == SM_CORE_MODEL ]] && continue
  option=${name#SM_CORE_}
  option=${option,,}
  option=${option//_/-}
  case ${!name} in
    true) arguments+=("--$option") ;;
    false) arguments+=("--no-$option") ;;
    *) arguments+=("--$option=${!name}") ;;
  esac
done

exec core serve "${SM_CORE_MODEL:-/opt/ml/model}" "${arguments[@]}" --host 0.0.0.0 --port "${SAGEMAKER_BIND_TO_PORT:-8080}"
