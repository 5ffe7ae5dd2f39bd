"""The public names."""

from minijaxnet.backprop import mlp_gradient
from minijaxnet.bench import StepComparison, StepTiming, compare_steps, time_step
from minijaxnet.custom_gradient import with_gradient
from minijaxnet.data import Batch, breast_cancer, diabetes, digits, iris, lesson_points, wine
from minijaxnet.descent import Descent, DescentState, StepInfo, gradient_descent
from minijaxnet.descent_optax import optax_descent
from minijaxnet.experiment import Experiment, ExperimentError, Settings, load_experiment
from minijaxnet.history import DIVERGED, FLAT, OUT_OF_STEPS, STOPPED_EARLY, Status, Trace
from minijaxnet.landscape import LossSlice, LossSurface, loss_slice, loss_surface, project_path, weight_direction
from minijaxnet.load import Run, load_params, load_run
from minijaxnet.loop import descend, descend_epochs
from minijaxnet.losses import (
    accuracy,
    binary_cross_entropy,
    mean_squared_error,
    objective,
    prediction_errors,
    softmax_cross_entropy,
)
from minijaxnet.network import Network, dense, elementwise, mlp, serial
from minijaxnet.report import notebook as _notebook  # noqa: F401 - from here on results show themselves in notebooks
from minijaxnet.report.live import live
from minijaxnet.run import CheckpointError, FitResult, Sink, checkpoint_step, fit, load_checkpoint, save_checkpoint
from minijaxnet.streams import padded
from minijaxnet.sweeps import SweepResult, sweep
from minijaxnet.verify import GradientMismatch, GradReport, assert_grad, assert_vjp, check_grad, check_vjp

__all__ = [
    "DIVERGED",
    "FLAT",
    "OUT_OF_STEPS",
    "STOPPED_EARLY",
    "Batch",
    "CheckpointError",
    "Descent",
    "DescentState",
    "Experiment",
    "ExperimentError",
    "FitResult",
    "GradReport",
    "GradientMismatch",
    "LossSlice",
    "LossSurface",
    "Network",
    "Run",
    "Settings",
    "Sink",
    "Status",
    "StepComparison",
    "StepInfo",
    "StepTiming",
    "SweepResult",
    "Trace",
    "accuracy",
    "assert_grad",
    "assert_vjp",
    "binary_cross_entropy",
    "breast_cancer",
    "check_grad",
    "check_vjp",
    "checkpoint_step",
    "compare_steps",
    "dense",
    "descend",
    "descend_epochs",
    "diabetes",
    "digits",
    "elementwise",
    "fit",
    "gradient_descent",
    "iris",
    "lesson_points",
    "live",
    "load_checkpoint",
    "load_experiment",
    "load_params",
    "load_run",
    "loss_slice",
    "loss_surface",
    "mean_squared_error",
    "mlp",
    "mlp_gradient",
    "objective",
    "optax_descent",
    "padded",
    "prediction_errors",
    "project_path",
    "save_checkpoint",
    "serial",
    "softmax_cross_entropy",
    "sweep",
    "time_step",
    "weight_direction",
    "wine",
    "with_gradient",
]
