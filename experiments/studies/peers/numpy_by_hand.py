"""NumPy, with the backward pass by hand; the matrix products run on the threads of its BLAS."""

import numpy as np

from . import Arm, Run, Workload

Layers = list[tuple[np.ndarray, np.ndarray]]


def forward(layers: Layers, x: np.ndarray) -> list[np.ndarray]:
    """``h_0 = x``, the hidden layers ``h_l = relu(h_{l-1} @ W_l + b_l)``, and the predictions, which have no relu."""
    values = [x]
    for number, (weights, bias) in enumerate(layers):
        value = values[-1] @ weights + bias
        values.append(value if number == len(layers) - 1 else np.maximum(value, 0))
    return values


def squared_loss(predictions: np.ndarray, y: np.ndarray) -> tuple[np.floating, np.ndarray]:
    """``mean((p - y)^2)``, and its gradient by the predictions, ``2 (p - y) / n``."""
    errors = predictions - y
    return np.mean(errors * errors), errors * (2 / len(y))


def cross_entropy(logits: np.ndarray, y: np.ndarray) -> tuple[np.floating, np.ndarray]:
    """``mean(log sum exp(z) - z_y)``, and its gradient by the logits, ``(softmax(z) - onehot(y)) / n``."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=-1, keepdims=True)
    rows = np.arange(len(y))
    gradient = exponentials / sums
    gradient[rows, y] -= 1
    return np.mean(np.log(sums[:, 0]) - shifted[rows, y]), gradient / len(y)


def backward(layers: Layers, inputs: list[np.ndarray], delta: np.ndarray) -> Layers:
    """``dL/dW = h^T delta`` and ``dL/db = sum of delta``; for the layer below ``delta W^T``, where relu is not 0."""
    gradient = []
    for number in range(len(layers) - 1, -1, -1):
        h = inputs[number]
        gradient.append((h.T @ delta, delta.sum(axis=0)))
        if number:
            delta = (delta @ layers[number][0].T) * (h > 0)
    return gradient[::-1]


def arms(workload: Workload) -> dict[str, Arm]:
    """One arm, a Python loop that updates its weights in place."""
    starting, (x, y) = workload.weights(), workload.data()
    loss_and_gradient = cross_entropy if workload.classifies else squared_loss
    rate = np.float32(workload.learning_rate)

    def step(layers: Layers) -> np.floating:
        *inputs, predictions = forward(layers, x)
        loss, delta = loss_and_gradient(predictions, y)
        for layer, gradients in zip(layers, backward(layers, inputs, delta), strict=True):
            for leaf, gradient in zip(layer, gradients, strict=True):
                leaf -= rate * gradient
        return loss

    def start() -> Run:
        layers = [(weights.copy(), bias.copy()) for weights, bias in starting]
        return lambda steps: [step(layers) for _ in range(steps)]

    return {"NumPy, by hand": Arm(start)}
