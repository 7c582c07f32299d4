"""tadpipe: temporal action detection from videos, in two cached stages.

The public names, loaded when they are first used, so that `import tadpipe` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tadpipe.backbones.loading import load_backbone
    from tadpipe.errors import TadpipeError
    from tadpipe.pipeline.compare import compare
    from tadpipe.pipeline.detect_videos import detect
    from tadpipe.pipeline.e2e import train_e2e
    from tadpipe.pipeline.evaluate import evaluate
    from tadpipe.pipeline.extract import extract
    from tadpipe.pipeline.train_detector import load_detector, train_detector
    from tadpipe.pipeline.validate import validate
    from tadpipe.store.feature_store import FeatureStore

__version__ = "0.1.0"

__all__ = [
    "FeatureStore",
    "TadpipeError",
    "compare",
    "detect",
    "evaluate",
    "extract",
    "load_backbone",
    "load_detector",
    "train_detector",
    "train_e2e",
    "validate",
]

_HOMES = {
    "FeatureStore": "tadpipe.store.feature_store",
    "TadpipeError": "tadpipe.errors",
    "compare": "tadpipe.pipeline.compare",
    "detect": "tadpipe.pipeline.detect_videos",
    "evaluate": "tadpipe.pipeline.evaluate",
    "extract": "tadpipe.pipeline.extract",
    "load_backbone": "tadpipe.backbones.loading",
    "load_detector": "tadpipe.pipeline.train_detector",
    "train_detector": "tadpipe.pipeline.train_detector",
    "train_e2e": "tadpipe.pipeline.e2e",
    "validate": "tadpipe.pipeline.validate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tadpipe' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
