"""Names of the backbones; each is a builder function, imported only when asked for."""

BACKBONES = {
    "videomae-tiny": "tadpipe.backbones.videomae:videomae_tiny",
    "videomae-s": "tadpipe.backbones.videomae:videomae_s",
    "videomae-b": "tadpipe.backbones.videomae:videomae_b",
    "videomae-l": "tadpipe.backbones.videomae:videomae_l",
    "videomae-h": "tadpipe.backbones.videomae:videomae_h",
    "videomae-g": "tadpipe.backbones.videomae:videomae_g",
}
