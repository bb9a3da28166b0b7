"""How far a kernel may be from the reference: one table, with where each number comes from.

u is the unit roundoff of a type, half the distance of 1 to the next number: 2^-24 for float32, 2^-11 for float16,
2^-8 for bfloat16 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 2.1). Inputs are rounded to
the type first, so that both sides see the same numbers; the reference then computes in float32. What may differ is the
rounding of results to the type, and the order and rounding of sums, which the contract wants in float32.

An error is |got - wanted| / magnitude, element by element. The magnitude is what rounding scales with: the sum of the
absolute values of the terms, where the result is a sum, else |wanted|.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.defaults import torch_dtype
from core.types import DType

UNIT = {DType.FLOAT32: 2.0**-24, DType.FLOAT16: 2.0**-11, DType.BFLOAT16: 2.0**-8}
#: The types that activations, weights and KV may have.
FLOATS = tuple(UNIT)

#: Roundings to the element type on the way to a result, as in the references: a sum is rounded once, and once more
#: where a bias or a scale comes after; silu(gate) is rounded before the product; weights of attention may be rounded
#: to the type before they multiply the values, as tensor units want them.
ROUNDINGS = {
    "linear": 2,
    "rms_norm": 2,
    "add_rms_norm": 3,
    "silu_mul": 2,
    "rope": 1,
    "attention": 2,
    "add": 1,
    "add_layer_norm": 2,
    "activation": 1,
    "encoder_attention": 2,
    "mean_rows": 1,
}

#: Ulps of float32 for one elementary function (exp, rsqrt, sin …): libraries promise 1 to 4, and an argument's own
#: rounding of 1 ulp counts as often as the argument is large; the kit's arguments stay below 8.
ELEMENTARY = 16


def bound(op: str, dtype: DType, terms: int) -> float:
    """The largest relative error of `op` on inputs of `dtype`, its longest sum having `terms` terms.

    n-term sums in float32, in any order, are within n u of the exact sum of |terms| (Higham, equation 3.5); both the
    kernel and the reference may be that far off. Copies (embedding, select_rows) are exact. An angle is one product,
    rounded, and a function of it: |angle| u + 2 u on either side, which is at most 4 u (1 + |angle|).
    """
    if op in ("embedding", "select_rows"):
        return 0.0
    if op == "rope_angles":
        return 4 * UNIT[DType.FLOAT32]
    return 1.01 * ROUNDINGS[op] * UNIT[dtype] + 2 * (terms + ELEMENTARY) * UNIT[DType.FLOAT32]


def int8_kv(score_error: float) -> float:
    """What int8 KV, of a scale for each token and head or a finer one, may add to an error of attention, as a part of
    the largest |value|.

    Half a step is 1 / (2 * 127) of the largest magnitude that the scale is for. Scores that are off by `score_error`
    change a weight's numerator and its denominator by exp(score_error) at most.
    """
    return math.expm1(2 * score_error) + 1 / 254


def deviation(got: Tensor, wanted: Tensor, magnitude: Tensor, dtype: DType) -> float:
    """The largest |got - wanted| / magnitude; infinite where one is NaN or infinite and the other is not so.

    A magnitude below the type's normal numbers counts as the smallest of these, whose roundings are absolute.
    """
    got, wanted = got.float(), wanted.float()
    finite = wanted.isfinite()
    if not torch.equal(got.isnan(), wanted.isnan()) or not torch.equal(
        got[~finite].nan_to_num(0), wanted[~finite].nan_to_num(0)
    ):
        return float("inf")
    least = torch.finfo(torch_dtype(dtype)).tiny
    error = (got - wanted).abs() / magnitude.nan_to_num(0).clamp_min(least)
    return float(error[finite].max()) if bool(finite.any()) else 0.0


#: Logits of the kit's whole tiny models, as a part of their largest absolute value. Some 30 roundings follow one another
#: through two layers; being of either sign they add up to about sqrt(30) u, and three times that is allowed: 16 u. In
#: float32 the sums' own errors count as well, of up to 128 terms in any order: sqrt(30) * sqrt(128) u, three times: 256 u.
#: Measured on a CPU: 24 u in float32, 6 u in bfloat16.
LOGITS = {DType.FLOAT32: 2.0**-16, DType.FLOAT16: 2.0**-7, DType.BFLOAT16: 2.0**-4}

#: A greedy token is right if its logit in the float32 reference is within this part of the largest absolute logit of
#: the largest: two logits closer than twice the error above may change places.
NEAR_TIE = {dtype: 2 * error for dtype, error in LOGITS.items()}
