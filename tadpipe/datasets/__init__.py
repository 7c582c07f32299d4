"""Names of the data sets; each is a DatasetSpec, imported only when asked for."""

DATASETS = {
    "thumos14": "tadpipe.datasets.thumos14:THUMOS14",
}
