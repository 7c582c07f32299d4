"""Names of the data sets; each is a DatasetSpec, imported only when asked for."""

DATASETS = {
    "activitynet": "tadpipe.datasets.activitynet:ACTIVITYNET",
    "ego4d_mq": "tadpipe.datasets.ego4d_mq:EGO4D_MQ",
    "epic_kitchens": "tadpipe.datasets.epic_kitchens:EPIC_KITCHENS",
    "thumos14": "tadpipe.datasets.thumos14:THUMOS14",
}
