"""NumPy, with the backward pass by hand; the matrix products run on BLAS's threads."""

import numpy as np

from . import Arm, Run, Workload


def forward(layers: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray) -> list[np.ndarray]:
    """``h_0 = x``, the hidden layers ``h_l = relu(h_{l-1} @ W_l + b_l)``, and the predictions, which have no relu."""
    seen = [x]
    for number, (weights, bias) in enumerate(layers):
        value = seen[-1] @ weights + bias[..., None, :]
        seen.append(value if number == len(layers) - 1 else np.maximum(value, 0))
    return seen


def squared_loss(predictions: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``mean((p - y)^2)``, and its slope in the predictions, ``2 (p - y) / n``."""
    errors = predictions - y
    return np.mean(errors * errors, axis=(-2, -1)), errors * (2 / len(y))


def surprise(logits: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``mean(log sum exp(z) - z_y)``, and its slope in the logits, ``(softmax(z) - onehot(y)) / n``."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=-1, keepdims=True)
    rows = np.arange(len(y))
    loss = np.mean(np.log(sums[:, 0]) - shifted[rows, y])
    slope = exponentials / sums
    slope[rows, y] -= 1
    return loss, slope / len(y)


def backward(
    layers: list[tuple[np.ndarray, np.ndarray]], inputs: list[np.ndarray], delta: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The slopes ``dL/dW = h^T delta`` and ``dL/db = sum of delta``; below, ``delta W^T`` where relu let through."""
    slopes = []
    for number in range(len(layers) - 1, -1, -1):
        h = inputs[number]
        slopes.append((h.swapaxes(-1, -2) @ delta, delta.sum(axis=-2)))
        if number:
            delta = (delta @ layers[number][0].swapaxes(-1, -2)) * (h > 0)
    return slopes[::-1]


def arms(workload: Workload) -> dict[str, Arm]:
    """One arm, a Python loop that updates its weights in place."""
    starting, (x, y) = workload.weights(), workload.data()
    loss_and_slope = surprise if workload.classifies else squared_loss
    rate = np.float32(workload.learning_rate)

    def step(layers: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        *inputs, predictions = forward(layers, x)
        loss, delta = loss_and_slope(predictions, y)
        slopes = backward(layers, inputs, delta)
        for (weights, bias), (weights_slope, bias_slope) in zip(layers, slopes, strict=True):
            weights -= rate * weights_slope
            bias -= rate * bias_slope
        return loss

    def start() -> Run:
        layers = [(weights.copy(), bias.copy()) for weights, bias in starting]
        return lambda steps: [step(layers) for _ in range(steps)]

    return {"NumPy, by hand": Arm(start)}
