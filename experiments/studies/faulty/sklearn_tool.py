"""scikit-learn: its ``MLPClassifier`` and ``MLPRegressor``, kept with joblib as its page on persistence says."""

from pathlib import Path
from typing import Any

import joblib  # pyright: ignore[reportMissingImports]
import numpy as np
from sklearn.neural_network import MLPClassifier, MLPRegressor

from .judge import Arrays, NotOffered
from .tool import HIDDEN, Call, Tool, minibatch


class ScikitLearn(Tool):
    """As its user guide has it."""

    suffix = ".joblib"
    leaf = r"coefs?_|intercepts?_"

    def train(self, call: Call) -> Arrays:
        """``fit``."""
        if call.change_params is not Call.change_params:
            raise NotOffered("it takes no parameters")
        if call.seed is None:
            raise NotOffered("its order needs no key")
        if (np.ndim(call.x) == 2 and np.shape(call.x)[1] not in (0, 3)) or np.shape(call.y)[1:] == (2,):
            raise NotOffered("it makes its network from the data")
        if isinstance(call.x, np.ndarray) and call.x.dtype.kind in "fi" and call.x.dtype != np.dtype(np.float32):
            raise NotOffered("its precision is that of the data")
        labels = np.asarray(call.y)
        if call.classes and labels.dtype.kind in "if" and not np.isin(labels[~np.isnan(labels)], [0, 1]).all():
            raise NotOffered("whatever is a label is a class to it")
        cls: Any = MLPClassifier if call.classes else MLPRegressor
        model = cls(
            hidden_layer_sizes=(HIDDEN,),
            activation="tanh",
            solver="sgd",
            learning_rate_init=call.learning_rate,
            batch_size=call.batch_size,
            max_iter=call.steps,
            random_state=call.seed,
        )
        return self.arrays(model.fit(call.x, call.y))

    def tree(self, change: str = "") -> Any:
        """A model after a first step, which makes its parameters."""
        if change in ("missing leaf", "renamed key"):
            raise NotOffered("its models cannot lack a leaf")
        hidden = (HIDDEN, 2) if change == "extra leaf" else (HIDDEN + (change == "wrong shape"),)
        solver = "adam" if change == "other optimizer" else "sgd"
        model = MLPClassifier(hidden, activation="tanh", solver=solver, random_state=0, shuffle=False)
        model.partial_fit(*minibatch(0), classes=[0, 1])
        if change == "changed dtype":
            model.coefs_ = [leaf.astype(np.float16) for leaf in model.coefs_]
        return model

    def spoiled(self, spoil: Any) -> Any:
        """Each array changed."""
        model = self.tree()
        model.coefs_ = [np.array(spoil(leaf)) for leaf in model.coefs_]
        model.intercepts_ = [np.array(spoil(leaf)) for leaf in model.intercepts_]
        return model

    def arrays(self, tree: Any) -> Arrays:
        """By its own names; the optimizer's, too."""
        found = {"coefs_": tree.coefs_, "intercepts_": tree.intercepts_}
        found |= {"velocities": getattr(getattr(tree, "_optimizer", None), "velocities", [])}
        return {f"{name}[{n}]": np.asarray(leaf) for name, leaves in found.items() for n, leaf in enumerate(leaves)}

    def save(self, path: Path, tree: Any) -> None:
        """``joblib.dump``."""
        joblib.dump(tree, path)

    def load(self, path: Path, like: Any) -> Any:
        """``joblib.load``; it takes no template."""
        return joblib.load(path)

    def step(self, tree: Any, number: int) -> Any:
        """``partial_fit``."""
        return tree.partial_fit(*minibatch(number))
