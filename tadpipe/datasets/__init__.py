"""Names of the data sets; each is a DatasetSpec, imported only when asked for."""

DATASETS = {
    "activitynet": "tadpipe.datasets.activitynet:ACTIVITYNET",
    "charades": "tadpipe.datasets.charades:CHARADES",
    "ego4d_mq": "tadpipe.datasets.ego4d_mq:EGO4D_MQ",
    "ego4d_mq_opentad": "tadpipe.datasets.ego4d_mq:EGO4D_MQ_OPENTAD",
    "epic_kitchens": "tadpipe.datasets.epic_kitchens:EPIC_KITCHENS",
    "epic_kitchens_noun": "tadpipe.datasets.epic_kitchens:EPIC_KITCHENS_NOUN",
    "epic_kitchens_verb": "tadpipe.datasets.epic_kitchens:EPIC_KITCHENS_VERB",
    "epic_sounds": "tadpipe.datasets.epic_sounds:EPIC_SOUNDS",
    "fineaction": "tadpipe.datasets.fineaction:FINEACTION",
    "hacs": "tadpipe.datasets.hacs:HACS",
    "multithumos": "tadpipe.datasets.multithumos:MULTITHUMOS",
    "thumos14": "tadpipe.datasets.thumos14:THUMOS14",
}
