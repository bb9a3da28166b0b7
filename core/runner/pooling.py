"""One step of a model that pools: batch → forward → vectors → their activation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from core.runner.batch import StepInputs
from core.runner.model_runner import ModelRunner, finished_rows
from core.types import PoolingActivation, PoolingParams, StepOutput

Floats = npt.NDArray[np.float32]


class PoolingRunner(ModelRunner):
    """Gives the vector of each prompt whose last token was computed; in place of a token it counts one that is never seen."""

    def sample(self, output: StepOutput, inputs: StepInputs, logits: torch.Tensor) -> None:
        """Vectors, as the requests want them."""
        rows, vectors = finished_rows(inputs, logits)
        for row, vector in zip(rows.tolist(), vectors.float().numpy(), strict=True):
            output.pooled[row] = finished(vector, self.batch.pooling[row] or PoolingParams()).astype("<f4").tobytes()
        self.batch.advance(inputs, rows, np.zeros(len(rows), np.int64))
        output.rows += rows.tolist()
        output.token_ids += [0] * len(rows)


def finished(vector: Floats, params: PoolingParams) -> Floats:
    """A pooled vector [size] as a request wants it: cut first, as Matryoshka representations are, then activated."""
    return activated(vector[: params.dimensions], params.activation)


def activated(vector: Floats, activation: PoolingActivation) -> Floats:
    """normalize leaves zeros as they are; sigmoid and softmax are taken so that nothing overflows."""
    found = vector
    if activation == "normalize":
        found = vector / max(np.sqrt(np.square(vector).sum()), np.float32(1e-12))
    elif activation == "sigmoid":
        found = np.exp(-np.logaddexp(np.float32(0.0), -vector))
    elif activation == "softmax":
        powers = np.exp(vector - vector.max())
        found = powers / powers.sum()
    return found
