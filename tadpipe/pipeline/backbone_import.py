"""Published backbone weights as our own files: `tadpipe checkpoint import --from videomae`."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.checkpoints import read_checkpoint
from tadpipe.backbones.loading import load_backbone, save_backbone
from tadpipe.backbones.recognise import backbones_like, families, family_of
from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.pipeline.checkpoint_report import BackboneImport


def is_backbone(name: str) -> bool:
    """Whether `--from` names a backbone or a family of them."""
    return name in BACKBONES or name in families()


def import_backbone(
    path: str | Path, source: str, *, out: str | Path | None = None, dry_run: bool = False
) -> BackboneImport:
    """Read published weights strictly and write them with what builds the backbone.

    Args:
        source: a backbone, or its family: which size it is, the shapes tell.
        out: file to write; without it, weights/<backbone>.safetensors.
    Raises:
        CheckpointError: unreadable, or not the weights of one of these backbones.
        ConfigError: the file to write is there already.
    """
    path = Path(path)
    name, layout = source, ""
    family = family_of(source) if source in BACKBONES else source
    found = backbones_like(read_checkpoint(path).state, family)
    if source in BACKBONES:
        # where another size fits, the strict load below says so
        layout = next((each.layout for each in found), "")
    elif found:
        name, layout = found[0]
    else:
        sizes = [name for name in BACKBONES if family_of(name) == family]
        raise CheckpointError(
            f"No backbone of the family {family} has these shapes.",
            str(path),
            f"Known sizes: {', '.join(sizes)}. Name one with --from to see what does not fit.",
        )
    target = Path(out) if out is not None else Path("weights") / f"{name}.safetensors"
    if target.suffix != ".safetensors":
        raise ConfigError("Weights are written as .safetensors.", f"--out {target}")
    if target.exists():
        raise ConfigError("The file is there already.", str(target), "Name another with --out.")
    backbone = load_backbone(name, path)
    assert isinstance(backbone, nn.Module)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    if not dry_run:
        save_backbone(target, backbone)
    return BackboneImport(str(path), name, layout, parameters, target, dry_run)
