"""The backbone that a feature spec names, with exactly its weights, adapters and pixels.

A run of `tadpipe e2e` keeps its tuned backbone in its folder; other weights are looked for where
they were seen last.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.loading import load_backbone
from tadpipe.backbones.protocol import Backbone
from tadpipe.backbones.tia import Adaptable
from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.pipeline.known_weights import KnownWeights, find_weights
from tadpipe.pipeline.recipe import load_recipe
from tadpipe.pipeline.run_folder import BACKBONE_FILE, backbone_weights
from tadpipe.store.metadata import FeatureSpec


class TunedBackbone(NamedTuple):
    """What an end-to-end run offers for extraction."""

    file: Path
    spec: FeatureSpec  # of the features its detector was trained on


def tuned_backbone(weights: str | Path | None) -> TunedBackbone | None:
    """The tuned backbone of the run folder that `weights` may be; None for a file or a name.

    Raises:
        CheckpointError: a folder that is no finished end-to-end run.
    """
    file = backbone_weights(weights)
    if weights is None or file == weights:
        return None
    return TunedBackbone(Path(str(file)), load_recipe(Path(weights)).features[0])


def place_of_weights(
    spec: FeatureSpec,
    run: str | Path,
    given: str | Path | None,
    otherwise: str | Path | None = None,
) -> KnownWeights | None:
    """Where a run's backbone weights are: as given, in its folder, where they were seen last.

    Args:
        otherwise: what to take where nothing else is known.
    """
    if given is not None:
        return KnownWeights(backbone_weights(given) or given)
    own = Path(run) / BACKBONE_FILE
    if own.is_file():
        return KnownWeights(own)
    known = find_weights(spec.adapter_sha256 or spec.weights_sha256)
    return known or (None if otherwise is None else KnownWeights(otherwise))


def load_exactly(
    spec: FeatureSpec,
    place: KnownWeights | None,
    *,
    device: str,
    compile: bool = False,
    run: str,
) -> Backbone:
    """Load the backbone of a spec; `place` None means the named download.

    Raises:
        ConfigError: features that tadpipe did not extract.
        CheckpointError: other weights than the spec's.
    """
    if spec.backbone not in BACKBONES or spec.pixels is None:
        raise ConfigError(
            "The features this model was trained on cannot be extracted here.",
            f"{run}: {spec.backbone}, {spec.representation} features",
            "Evaluate it on stored features with train-detector and evaluate instead.",
        )
    weights, seed = (None, 0) if place is None else place
    backbone = load_backbone(
        spec.backbone, weights, device=device, dtype=spec.compute_dtype, compile=compile, seed=seed
    )
    adapters = backbone.adapter_sha256 if isinstance(backbone, Adaptable) else ""
    if (backbone.weights_sha256, adapters) != (spec.weights_sha256, spec.adapter_sha256):
        raise CheckpointError(
            "These are not the backbone weights the model was trained on.",
            f"{weights or 'the named download'}: SHA-256 {backbone.weights_sha256[:12]}...;  "
            f"{run}: {spec.weights_sha256[:12]}...",
            "Name the right file, or the folder of the end-to-end run, with --weights.",
        )
    backbone.pixels = spec.pixels
    backbone.set_clip_len(spec.clip_len)
    return backbone
