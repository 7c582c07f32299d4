"""What a dry run says that an extraction would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tadpipe.backbones.loading import load_backbone
from tadpipe.cli.main import run
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.extract_report import ExtractPlan, ExtractRates, ExtractReport
from tests.corpus import make_video

SETTINGS: dict[str, Any] = {"backbone": "videomae-tiny", "weights": "random", "device": "cpu"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i, frames in enumerate((70, 53)):
        make_video(folder / f"v{i}.mp4", frames=frames)
    return folder


def planned(videos: Path, store: Path, **options: Any) -> ExtractReport:
    settings = {**SETTINGS, "calibrate_sec": 0, **options}
    return extract([videos], store=store, dry_run=True, **settings)


def plan_of(videos: Path, store: Path, **options: Any) -> ExtractPlan:
    plan = planned(videos, store, **options).plan
    assert plan is not None
    return plan


def test_plan_counts_the_clips_and_bytes_that_the_run_makes(videos: Path, tmp_path: Path) -> None:
    report = planned(videos, tmp_path / "s.zarr")
    done = extract([videos], store=tmp_path / "s.zarr", **SETTINGS)
    assert report.plan is not None
    assert report.plan.passes == done.total("rows")
    assert report.total("bytes") == done.total("bytes")
    assert report.plan.frames == done.total("frames_decoded")


def test_plan_of_another_rate_counts_the_resampled_frames(videos: Path, tmp_path: Path) -> None:
    report = planned(videos, tmp_path / "s.zarr", fps=15.0)
    done = extract([videos], store=tmp_path / "s.zarr", fps=15.0, **SETTINGS)
    assert [v.rows for v in report.videos] == [v.rows for v in done.videos]


def test_what_is_there_is_not_planned_again(videos: Path, tmp_path: Path) -> None:
    extract([videos / "v0.mp4"], store=tmp_path / "s.zarr", **SETTINGS)
    report = planned(videos, tmp_path / "s.zarr")
    assert [video.status for video in report.videos] == ["reused", "done"]
    assert report.plan is not None
    assert report.plan.passes == report.videos[1].rows


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", ["videomae-tiny", "tsm-r50"])
def test_flops_are_those_of_a_real_pass(
    videos: Path, tmp_path: Path, backbone: str, dtype: str
) -> None:
    plan = plan_of(videos, tmp_path / "s.zarr", backbone=backbone, clip_len=8, dtype=dtype)
    model = load_backbone(backbone, "random")
    model.set_clip_len(8)
    side = model.pixels.size
    with (
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(torch.zeros(1, 3, 8, side, side))
    assert plan.flops_per_pass == counter.get_total_flops() > 0


def test_calibration_states_the_hours(videos: Path, tmp_path: Path) -> None:
    report = planned(videos, tmp_path / "s.zarr", calibrate_sec=1)
    assert report.plan is not None
    assert report.plan.rates is not None
    assert report.plan.rates.frames_per_sec is not None
    expected = report.plan.passes / report.plan.rates.passes_per_sec / 3600
    assert report.plan.backbone_hours == expected
    assert f"{report.plan.rates.passes_per_sec:,.2f} clips/s" in report.text()


def test_without_calibration_no_hours_are_stated(videos: Path, tmp_path: Path) -> None:
    mapping = planned(videos, tmp_path / "s.zarr").to_mapping()["plan"]
    assert (mapping["hours"], mapping["rates"]) == (None, None)
    assert mapping["flops"] == mapping["passes"] * mapping["flops_per_pass"]


def plan(shares_cores: bool) -> ExtractPlan:
    rates = ExtractRates(passes_per_sec=10.0, frames_per_sec=100.0, batch=4, seconds=1.0)
    return ExtractPlan("clip", 36_000, 10**9, 360_000, "", shares_cores, 2, "fp32", rates)


def test_cores_that_decode_and_compute_take_the_sum_a_gpu_the_longer() -> None:
    assert (plan(True).hours, plan(False).hours) == (1.5, 1.0)


def test_plan_without_a_video_that_decodes_states_no_hours(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_text("no video")
    report = planned(tmp_path, tmp_path / "s.zarr", calibrate_sec=1)
    assert report.exit_code == 3
    assert report.to_mapping()["plan"]["hours"] is None


def test_dry_run_writes_nothing(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"
    command = ["extract", str(videos), "--store", str(store), "--backbone", "videomae-tiny"]
    assert run([*command, "--weights", "random", "--dry-run", "--calibrate", "0"]) == 0
    assert not store.exists()
    assert "24 clips of 0.02 GFLOPs" in capfd.readouterr().out
