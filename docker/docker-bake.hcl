# All images: `docker buildx bake -f docker/docker-bake.hcl [TARGET …]` in the repository's root; without a target, the CPU's.
#
# For this machine's architecture, into its own image store. A release is pushed, with what it is made of:
#
#   REGISTRY=registry.example.com/ TAG=1.2.3 docker buildx bake -f docker/docker-bake.hcl cpu-all \
#     --set '*.platform=linux/amd64,linux/arm64' --sbom=true --provenance=mode=max --push

variable "REGISTRY" {
  default = ""
}

variable "TAG" {
  default = ""
}

variable "PYTHON_VERSION" {
  default = "3.12"
}

function "tags" {
  params = [name]
  result = ["${REGISTRY}core:${name}${TAG == "" ? "" : "-${TAG}"}"]
}

group "default" {
  targets = ["cpu"]
}

group "cpu-all" {
  targets = ["cpu", "cpu-nonroot", "cpu-sagemaker"]
}

group "cuda-all" {
  targets = ["cuda", "cuda-nonroot", "cuda-sagemaker"]
}

group "all" {
  targets = ["cpu-all", "cuda-all", "arm", "ppc64le", "rocm", "xpu", "tpu", "neuron"]
}

target "_common" {
  context = "."
  args = {
    PYTHON_VERSION = PYTHON_VERSION
  }
}

target "cpu" {
  inherits   = ["_common"]
  dockerfile = "docker/Dockerfile.cpu"
  target     = "core-openai"
  tags       = tags("cpu")
}

target "cpu-nonroot" {
  inherits = ["cpu"]
  target   = "core-openai-nonroot"
  tags     = tags("cpu-nonroot")
}

target "cpu-sagemaker" {
  inherits  = ["cpu"]
  target    = "core-sagemaker"
  platforms = ["linux/amd64"]
  tags      = tags("cpu-sagemaker")
}

target "cuda" {
  inherits   = ["_common"]
  dockerfile = "docker/Dockerfile"
  target     = "core-openai"
  tags       = tags("cuda")
}

target "cuda-nonroot" {
  inherits = ["cuda"]
  target   = "core-openai-nonroot"
  tags     = tags("cuda-nonroot")
}

target "cuda-sagemaker" {
  inherits  = ["cuda"]
  target    = "core-sagemaker"
  platforms = ["linux/amd64"]
  tags      = tags("cuda-sagemaker")
}

target "arm" {
  inherits   = ["_common"]
  dockerfile = "docker/Dockerfile.arm"
  target     = "core-openai"
  platforms  = ["linux/arm64"]
  tags       = tags("arm")
}

target "ppc64le" {
  inherits   = ["_common"]
  dockerfile = "docker/Dockerfile.ppc64le"
  target     = "core-openai"
  platforms  = ["linux/ppc64le"]
  tags       = tags("ppc64le")
}

target "rocm" {
  inherits   = ["_common"]
  dockerfile = "docker/Dockerfile.rocm"
  target     = "core-openai"
  platforms  = ["linux/amd64"]
  tags       = tags("rocm")
}

target "xpu" {
  inherits   = ["_common"]
  dockerfile = "docker/Dockerfile.xpu"
  target     = "core-openai"
  platforms  = ["linux/amd64"]
  tags       = tags("xpu")
}

target "tpu" {
  inherits   = ["_common"]
  dockerfile = "docker/Dockerfile.tpu"
  target     = "core-openai"
  platforms  = ["linux/amd64"]
  tags       = tags("tpu")
}

target "neuron" {
  inherits   = ["_common"]
  dockerfile = "docker/Dockerfile.neuron"
  target     = "core-openai"
  platforms  = ["linux/amd64"]
  tags       = tags("neuron")
}
