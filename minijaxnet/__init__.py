"""A small JAX framework for researchers who work on gradients: descend, verify, benchmark."""

from minijaxnet.data import Batch, breast_cancer, diabetes, digits, iris, lesson_points, wine
from minijaxnet.descent import Descent, DescentState, StepInfo, gradient_descent, optax_descent
from minijaxnet.loop import (
    DIVERGED,
    FLAT,
    OUT_OF_STEPS,
    Status,
    Trace,
    descend,
    descend_epochs,
)
from minijaxnet.losses import (
    accuracy,
    binary_cross_entropy,
    mean_squared_error,
    objective,
    prediction_errors,
    softmax_cross_entropy,
)
from minijaxnet.network import Network, dense, elementwise, mlp, serial

__all__ = [
    "DIVERGED",
    "FLAT",
    "OUT_OF_STEPS",
    "Batch",
    "Descent",
    "DescentState",
    "Network",
    "Status",
    "StepInfo",
    "Trace",
    "accuracy",
    "binary_cross_entropy",
    "breast_cancer",
    "dense",
    "descend",
    "descend_epochs",
    "diabetes",
    "digits",
    "elementwise",
    "gradient_descent",
    "iris",
    "lesson_points",
    "mean_squared_error",
    "mlp",
    "objective",
    "optax_descent",
    "prediction_errors",
    "serial",
    "softmax_cross_entropy",
    "wine",
]
