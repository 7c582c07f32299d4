"""Names of the detectors; each is imported only when asked for."""

DETECTORS = {
    "actionformer": "tadpipe.detectors.actionformer:ActionFormer",
}
