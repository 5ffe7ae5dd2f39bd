"""Code as people write it, by kind: rules that are right and must not be accused, and wrong relatives of each."""

from corpora import (
    real_callbacks,
    real_casts,
    real_complex,
    real_constants,
    real_engine,
    real_kinks,
    real_nonfinite,
    real_pallas,
    real_static,
    real_surrogates,
    real_unreferenced,
)

KINDS = {
    "written casts": real_casts.KIND,
    "closed over": real_constants.CLOSURES,
    "computed beforehand": real_constants.BEFOREHAND,
    "complex": real_complex.KIND,
    "host callbacks": real_callbacks.KIND,
    "autodiff not finite": real_nonfinite.KIND,
    "static arguments": real_static.KIND,
    "kinks": real_kinks.KIND,
    "surrogates": real_surrogates.KIND,
    "linear calls": real_engine.LINEAR,
    "primitives of the new engine": real_engine.PRIMITIVES,
    "kernels interpreted": real_pallas.INTERPRETED,
    "kernels as they are": real_pallas.AS_THEY_ARE,
    "no reference": real_unreferenced.KIND,
}
