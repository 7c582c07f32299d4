"""Names of the detectors; each is imported only when asked for."""

DETECTORS = {
    "actionformer": "tadpipe.detectors.actionformer:ActionFormer",
    "asl": "tadpipe.detectors.asl:Asl",
    "cltdr-gmg": "tadpipe.detectors.cltdr_gmg:CltdrGmg",
    "dyfadet": "tadpipe.detectors.dyfadet:Dyfadet",
    "etad": "tadpipe.detectors.etad:Etad",
    "etad-opentad": "tadpipe.detectors.etad_opentad:EtadOpenTad",
    "tridet": "tadpipe.detectors.tridet:TriDet",
}
