"""Code as people write it, by kind: rules that are right and must not be accused, and wrong relatives of each."""

from corpora import real_casts, real_constants

KINDS = {
    "written casts": real_casts.KIND,
    "closed over": real_constants.CLOSURES,
    "computed beforehand": real_constants.BEFOREHAND,
}
