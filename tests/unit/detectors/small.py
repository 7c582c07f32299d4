"""Small configurations, one for every detector, that its own tests and the shared ones use."""

from __future__ import annotations

from tadpipe.detectors.actionformer import ActionFormerConfig
from tadpipe.detectors.asl import AslConfig
from tadpipe.detectors.cltdr_gmg import CltdrGmgConfig
from tadpipe.detectors.dyfadet import DyfadetConfig
from tadpipe.detectors.etad import EtadConfig
from tadpipe.detectors.etad_opentad import EtadOpenTadConfig
from tadpipe.detectors.tridet import TriDetConfig

ACTIONFORMER = ActionFormerConfig(
    in_channels=6,
    num_classes=3,
    window_len=64,
    embed_dim=8,
    num_heads=2,
    attention_windows=5,
    branch_layers=2,
    neck_dim=8,
    head_dim=8,
    regression_ranges=((0.0, 4.0), (4.0, 8.0), (8.0, 10000.0)),
    drop_path=0.1,
)
ASL = AslConfig(
    in_channels=6,
    num_classes=3,
    window_len=64,
    embed_dim=8,
    num_heads=2,
    attention_windows=5,
    branch_layers=2,
    neck_dim=8,
    head_dim=8,
    regression_ranges=((0.0, 4.0), (4.0, 8.0), (8.0, 10000.0)),
)
CLTDR_GMG = CltdrGmgConfig(
    in_channels=6,
    num_classes=3,
    window_len=64,
    embed_dim=16,
    branch_layers=2,
    local_windows=3,
    mlp_dim=12,
    head_dim=8,
    num_bins=4,
    input_noise=0.0,
    regression_ranges=((0.0, 4.0), (4.0, 8.0), (8.0, 10000.0)),
)
DYFADET = DyfadetConfig(
    in_channels=6,
    num_classes=3,
    window_len=64,
    embed_dim=16,
    branch_layers=2,
    neck_dim=16,
    head_dim=8,
    mlp_dim=24,
    dyne_windows=3,
    dyne_factor=1.5,
    conv_init_std=0.1,
    regression_ranges=((0.0, 4.0), (4.0, 8.0), (8.0, 10000.0)),
)
ETAD = EtadConfig(
    in_channels=8,
    num_classes=1,
    window_len=16,
    max_duration=12,
    width=32,
    mid_dim=12,
    fc_dim=8,
    roi_bins=8,
    dps_ratio=0.2,
)
ETAD_OPENTAD = EtadOpenTadConfig(
    in_channels=8,
    num_classes=1,
    window_len=16,
    max_duration=12,
    width=32,
    trunk_dim=12,
    fc_dim=8,
    roi_bins=6,
    dps_ratio=0.2,
)
TRIDET = TriDetConfig(
    in_channels=6,
    num_classes=3,
    window_len=64,
    embed_dim=16,
    branch_layers=2,
    sgp_windows=3,
    sgp_factor=1.5,
    mlp_dim=12,
    neck_dim=16,
    head_dim=8,
    num_bins=4,
    regression_ranges=((0.0, 4.0), (4.0, 8.0), (8.0, 10000.0)),
)

CONFIGS = {
    "actionformer": ACTIONFORMER,
    "asl": ASL,
    "cltdr-gmg": CLTDR_GMG,
    "dyfadet": DYFADET,
    "etad": ETAD,
    "etad-opentad": ETAD_OPENTAD,
    "tridet": TRIDET,
}
