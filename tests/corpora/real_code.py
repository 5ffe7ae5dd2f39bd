"""Code as people write it, by kind: rules that are right and must not be accused, and wrong relatives of each."""

from corpora import (
    real_callbacks,
    real_casts,
    real_complex,
    real_constants,
    real_kinks,
    real_nonfinite,
    real_static,
    real_surrogates,
)

KINDS = {
    "written casts": real_casts.KIND,
    "closed over": real_constants.CLOSURES,
    "computed beforehand": real_constants.BEFOREHAND,
    "complex": real_complex.KIND,
    "host callbacks": real_callbacks.KIND,
    "not repeatable": real_callbacks.NOISE,
    "autodiff not finite": real_nonfinite.KIND,
    "static arguments": real_static.KIND,
    "kinks": real_kinks.KIND,
    "surrogates": real_surrogates.KIND,
}
