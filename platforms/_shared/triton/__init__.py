"""The kernels of the GPU platforms, in Triton (Tillet et al. 2019): one source for NVIDIA, AMD and Intel.

`kernels` is device code only; `ops` and `attention` launch it on torch tensors; `tiles` says in what sizes, by target.
Nothing here is imported before a platform that uses it was chosen, and no launch reads a value on the host, so all of
it can be captured in a graph.
"""
