"""The objective of ``digits.py`` in other frameworks' words: cross-entropy of a relu network, and weight decay."""

from typing import Any

import numpy as np

from .numpy_by_hand import backward, forward, surprise


def torch_objective(weight_decay: float) -> Any:
    """``objective(params, batch) -> loss`` of PyTorch's tensors."""

    def objective(params: Any, batch: Any) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        x, y = batch
        for layer in params[:-1]:
            x = torch.relu(x @ layer["weights"] + layer["bias"])
        logits = x @ params[-1]["weights"] + params[-1]["bias"]
        price = sum(torch.sum(layer["weights"] ** 2) for layer in params)
        return torch.nn.functional.cross_entropy(logits, y.long()) + weight_decay * price

    return objective


def numpy_value_and_gradient(weight_decay: float) -> Any:
    """``value_and_gradient(params, batch) -> (loss, gradient)`` of NumPy's arrays."""

    def value_and_gradient(params: Any, batch: Any) -> tuple[Any, Any]:
        layers = [(layer["weights"], layer["bias"]) for layer in params]
        *inputs, logits = forward(layers, batch[0])
        loss, delta = surprise(logits, batch[1])
        gradient = tuple(
            {"weights": weights_slope + 2 * weight_decay * weights, "bias": bias_slope}
            for (weights_slope, bias_slope), (weights, _) in zip(backward(layers, inputs, delta), layers, strict=True)
        )
        return loss + weight_decay * sum(np.sum(weights**2) for weights, _ in layers), gradient

    return value_and_gradient
