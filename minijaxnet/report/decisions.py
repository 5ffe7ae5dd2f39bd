"""stub"""

import numpy as np


def confusion(p, a, n):
    c = np.zeros((n, n), int)
    np.add.at(c, (a, p), 1)
    return c


def draw_confusion(axes, counts, names=None):
    axes.imshow(counts)


def draw_mistakes(figure, images, predicted, actual, losses, *, most=12):
    figure.subplots()


def draw_regions(axes, predict, x, y):
    axes.scatter(*np.asarray(x).T)
