"""Names of the backbones; each is a builder function, imported only when asked for."""

BACKBONES = {
    "videomae-tiny": "tadpipe.backbones.videomae:videomae_tiny",
    "videomae-s": "tadpipe.backbones.videomae:videomae_s",
    "videomae-b": "tadpipe.backbones.videomae:videomae_b",
    "videomae-l": "tadpipe.backbones.videomae:videomae_l",
    "videomae-h": "tadpipe.backbones.videomae:videomae_h",
    "videomae-g": "tadpipe.backbones.videomae:videomae_g",
    "i3d-rgb": "tadpipe.backbones.i3d:i3d_rgb",
    "i3d-flow": "tadpipe.backbones.i3d:i3d_flow",
    "r2plus1d-34": "tadpipe.backbones.r2plus1d:r2plus1d_34",
    "tsm-r50": "tadpipe.backbones.tsm:tsm_r50",
    "slowfast-r50": "tadpipe.backbones.slowfast:slowfast_r50",
    "slowfast-r101": "tadpipe.backbones.slowfast:slowfast_r101",
    "slowonly-r50": "tadpipe.backbones.slowonly:slowonly_r50",
    "videoswin-t": "tadpipe.backbones.videoswin:videoswin_t",
    "videoswin-s": "tadpipe.backbones.videoswin:videoswin_s",
    "videoswin-b": "tadpipe.backbones.videoswin:videoswin_b",
    "videoswin-l": "tadpipe.backbones.videoswin:videoswin_l",
}
