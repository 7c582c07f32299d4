"""Existing features go into a store with the right times, and come out again the same."""

from __future__ import annotations

import csv
import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tadpipe.cli.main import run
from tadpipe.datasets.conventions import CONVENTIONS
from tadpipe.errors import ConfigError, TadpipeError
from tadpipe.pipeline.feature_export import export_features
from tadpipe.pipeline.feature_import import import_features
from tadpipe.pipeline.feature_provenance import Provenance, state_provenance
from tadpipe.pipeline.import_report import ImportReport
from tadpipe.pipeline.pickled_tensors import TENSOR_NAMES
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.ledger import read as read_ledger
from tadpipe.store.restricted_pickle import RefusedPickleError
from tests.unit.store.test_restricted_pickle import Harmful

HIGHJUMP = Path(__file__).parents[4] / "shared" / "data" / "features" / "highjump_i3d.npy"
C = 6
STATED: dict[str, Any] = {
    "backbone": "i3d",
    "channels": C,
    "stride": 4,
    "clip_len": 16,
    "fps": 30.0,
    "offset": 8.0,
}


def provenance(**changes: Any) -> Provenance:
    return state_provenance(**{**STATED, **changes})


def features(seed: int, rows: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, C)).astype(np.float32)


def imported(tmp_path: Path, *files: Path, **changes: Any) -> ImportReport:
    return import_features(files, store=tmp_path / "s.zarr", provenance=provenance(**changes))


def write_every_layout(folder: Path) -> dict[str, np.ndarray]:
    """One video per layout of the releases; name -> rows."""
    folder.mkdir()
    kinds = ("npy", "npz", "pt", "pkl", "hacs", "tensors", "csv", "turned", "h5a", "h5b")
    rows = {name: features(seed) for seed, name in enumerate(kinds)}
    np.save(folder / "npy.npy", rows["npy"])
    np.savez(folder / "npz.npz", feats=rows["npz"], other=np.zeros(3))
    torch.save(torch.from_numpy(rows["pt"]), folder / "pt.pt")
    (folder / "pkl.pkl").write_bytes(pickle.dumps(rows["pkl"], 2))
    for name, tensor in (("hacs", np.asarray), ("tensors", torch.from_numpy)):
        turned = np.ascontiguousarray(rows[name].T)[None]
        both = {"slow_feature": tensor(turned[:, :4]), "fast_feature": tensor(turned[:, 4:])}
        if name == "tensors":
            both = {key: torch.clone(value) for key, value in both.items()}
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(both))
    with open(folder / "csv.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[f"f{i}" for i in range(C)], *rows["csv"].tolist()])
    np.save(folder / "turned.npy", rows["turned"].T)
    with h5py.File(folder / "many.h5", "w") as file:
        file["h5a"], file["h5b"] = rows["h5a"], rows["h5b"]
    return rows


def test_every_layout_is_read(tmp_path: Path) -> None:
    rows = write_every_layout(tmp_path / "in")
    report = imported(tmp_path, tmp_path / "in")
    assert (report.exit_code, report.count("done")) == (0, len(rows)), report.text()
    store = FeatureStore.open(tmp_path / "s.zarr")
    for name, expected in rows.items():
        np.testing.assert_array_equal(np.asarray(store[name]), expected)
    again = imported(tmp_path, tmp_path / "in")
    assert (again.count("reused"), again.count("done")) == (len(rows), 0)


def test_rows_have_the_times_of_the_published_formula(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", features(0))
    imported(tmp_path, tmp_path / "v.npy", fps=29.97)
    view = FeatureStore.open(tmp_path / "s.zarr")["v"]
    np.testing.assert_allclose(view.times, (np.arange(9) * 4 + 8) / 29.97, rtol=1e-15)
    assert view.row.dt == 4 / Fraction("29.97")
    assert view.grid.to_sec(2.5) == pytest.approx((2.5 * 4 + 8) / 29.97)


@pytest.mark.parametrize(
    ("offset", "anchor"), [(8, "start"), (0, "centre"), (2, "cell"), (5, "start")]
)
def test_the_stated_offset_is_the_centre_of_row_0(
    tmp_path: Path, offset: float, anchor: str
) -> None:
    np.save(tmp_path / "v.npy", features(0))
    imported(tmp_path, tmp_path / "v.npy", offset=offset)
    view = FeatureStore.open(tmp_path / "s.zarr")["v"]
    assert view.spec.anchor == anchor
    assert view.grid.offset_frames == offset
    assert view.times[0] == pytest.approx(offset / 30)


@pytest.mark.skipif(not HIGHJUMP.exists(), reason="the shared features are not here")
def test_real_float64_features_are_imported_with_the_right_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "s.zarr")
    command = ["store", "import", str(HIGHJUMP), "--store", store, "--convention", "thumos14-i3d"]
    assert run([*command, "--fps", "30", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 1
    view = FeatureStore.open(store)["highjump_i3d"]
    assert (view.shape, view.dtype) == ((164, 2048), np.float32)
    np.testing.assert_array_equal(np.asarray(view), np.load(HIGHJUMP).astype(np.float32))
    np.testing.assert_allclose(view.times, (np.arange(164) * 4 + 8) / 30, rtol=1e-15)
    assert (view.spec.stride, view.spec.clip_len, view.spec.fps) == (4, 16, None)
    assert view.spec.settings()["pixels"] == "not stated"


def test_damaged_files_are_listed_and_the_rest_is_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    rows = write_every_layout(folder)
    whole = (folder / "npy.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:-7])
    (folder / "noise.npz").write_bytes(b"PK\x03\x04 not a zip")
    (folder / "evil.pkl").write_bytes(pickle.dumps(Harmful(tmp_path / "made")))
    options = ["--backbone", "i3d", "--channels", str(C), "--stride", "4", "--clip-len", "16"]
    command = ["store", "import", str(folder), *options, "--fps", "30", "--offset", "8"]
    assert run([*command, "--store", str(tmp_path / "s.zarr")]) == 3
    shown = capsys.readouterr().out
    for name in ("cut: damaged-file", "noise: damaged-file", "evil: refused-pickle"):
        assert f"failed  {name}" in shown
    assert f"{len(rows)} done, 0 reused, 3 failed" in shown
    assert not (tmp_path / "made").exists()
    ledger = read_ledger(tmp_path / "s.zarr" / "ledger")
    failed = {row.name: row.reason for _, row in ledger if row.status == "failed"}
    assert failed == {"cut": "damaged-file", "noise": "damaged-file", "evil": "refused-pickle"}


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda p: np.save(p / "v.npy", np.zeros((3, 5), np.float32)), "wrong-shape"),
        (lambda p: np.save(p / "v.npy", np.zeros((0, C), np.float32)), "wrong-shape"),
        (lambda p: np.save(p / "v.npy", np.array([["a"] * C])), "not-numbers"),
        (lambda p: np.save(p / "v.npy", np.full((2, C), 1e39)), "out-of-range"),
        (lambda p: np.save(p / "v.npy", np.full((2, C), {}), allow_pickle=True), "damaged-file"),
        (lambda p: np.savez(p / "v.npz", rgb=np.zeros((3, C))), "no-such-key"),
        (lambda p: (p / "v.csv").write_text("a,b\n"), "damaged-file"),
        (lambda p: (p / "v.csv").write_text("a,b\n1,x\n"), "damaged-file"),
        (lambda p: (p / "v.h5").write_bytes(b"no"), "damaged-file"),
        (lambda p: (p / "v.pt").write_bytes(b"no"), "damaged-file"),
        (lambda p: torch.save([torch.zeros(3, C)], p / "v.pt"), "wrong-shape"),
        (lambda p: torch.save(Harmful(p / "made"), p / "v.pt"), "refused-pickle"),
    ],
)
def test_what_cannot_be_used_has_a_typed_reason(tmp_path: Path, write: Any, reason: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder)
    report = imported(tmp_path, folder)
    assert [(video.status, video.reason) for video in report.videos] == [("failed", reason)]
    assert not (folder / "made").exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (3, 4), (1, 4)),
        (0, (100, 100), (0, 0)),
        (9, (2,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), ()),
    ],
)
def test_a_pickled_tensor_stays_within_its_storage(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    rebuild = TENSOR_NAMES["torch._utils", "_rebuild_tensor_v2"]
    np.testing.assert_array_equal(
        rebuild(np.arange(10.0), 1, (3, 3), (1, 3)), np.arange(1.0, 10).reshape(3, 3).T
    )
    with pytest.raises(RefusedPickleError, match="a tensor"):
        rebuild(np.arange(10.0), offset, size, stride)


def test_links_out_of_an_h5_file_are_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["v"] = features(0)
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["good"] = features(1)
        file["link"] = h5py.ExternalLink("other.h5", "v")
    report = imported(tmp_path, tmp_path / "in.h5")
    assert {video.name: video.status for video in report.videos} == {
        "good": "done",
        "link": "failed",
    }


@pytest.mark.parametrize("left_out", sorted(STATED))
def test_provenance_left_out_is_asked_for(left_out: str) -> None:
    with pytest.raises(ConfigError, match=f"missing: --{left_out.replace('_', '-')}\n"):
        provenance(**{left_out: None})


def test_a_convention_states_what_its_release_states() -> None:
    stated = state_provenance("activitynet-tsp")
    assert (stated.spec.stride, stated.spec.clip_len, stated.spec.fps) == (16, 16, 15.0)
    assert (stated.prefix, stated.offset_frames, stated.spec.channels) == ("v_", 8.0, 512)
    with pytest.raises(ConfigError, match="missing: --offset; hacs-i3d does not say"):
        state_provenance("hacs-i3d")
    assert state_provenance("hacs-i3d", offset=0.5).offset_frames == 0.5
    with pytest.raises(ConfigError, match="--stride contradicts the convention"):
        state_provenance("activitynet-tsp", stride=8)
    with pytest.raises(ConfigError, match="thumos14-i3d"):
        state_provenance("thumos14-i3")
    with pytest.raises(ConfigError, match="--fps must be positive"):
        provenance(fps=0.0)


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_a_convention_asks_only_for_what_it_leaves_open(name: str) -> None:
    known = CONVENTIONS[name]
    options = ("channels", "clip_len", "fps", "offset")
    asked = {option: 16 for option in options if getattr(known, option) is None}
    assert state_provenance(name, **asked).spec.backbone == known.backbone
    if asked:
        with pytest.raises(ConfigError, match="missing"):
            state_provenance(name)


def annotations(tmp_path: Path, **videos: dict[str, float]) -> Path:
    path = tmp_path / "a.json"
    database = {name: {"subset": "test", **video} for name, video in videos.items()}
    path.write_text(json.dumps({"database": database}), encoding="utf-8")
    return path


def test_native_rates_come_from_the_annotations(tmp_path: Path) -> None:
    for seed, name in enumerate(("v_a", "v_b", "v_c", "v_d")):
        np.save(tmp_path / f"{name}.npy", features(seed))
    labels = annotations(
        tmp_path,
        a={"duration": 2.0, "fps": 25.0},
        b={"duration": 2.0, "frame": 48},
        c={"duration": 60.0, "fps": 30.0},
        d={"duration": 2.0},
    )
    arguments: dict[str, Any] = {
        "store": tmp_path / "s.zarr",
        "provenance": provenance(fps="native", prefix="v_"),
    }
    with pytest.raises(ConfigError, match="--annotations"):
        import_features([tmp_path / "v_a.npy"], **arguments)
    files = sorted(tmp_path.glob("*.npy"))
    planned = import_features(files, annotations=labels, dry_run=True, **arguments)
    assert not (tmp_path / "s.zarr").exists()
    report = import_features(files, annotations=labels, **arguments)
    for found in (planned, report):
        assert [(v.name, v.reason) for v in found.videos if v.status == "failed"] == [
            ("d", "no-frame-rate")
        ]
        assert found.other_lengths == ["c"]
    assert "1 differ from their annotated duration by more than a clip: c" in report.text()
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert [store[name].row.fps for name in "abc"] == [25, 24, 30]
    assert store["c"].row.frames == 1800
    assert store.annotations() == labels.read_bytes()


def test_the_same_file_with_another_meaning_is_not_taken_for_the_stored_one(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "v.npy", features(0))
    imported(tmp_path, tmp_path / "v.npy", offset=8.0)
    report = imported(tmp_path, tmp_path / "v.npy", offset=5.0)
    assert [video.reason for video in report.videos] == ["other-provenance"]


@pytest.mark.parametrize("layout", ["npy", "npz", "h5"])
def test_export_and_import_round_trip(tmp_path: Path, layout: str) -> None:
    rows = write_every_layout(tmp_path / "in")
    imported(tmp_path, tmp_path / "in")
    out = tmp_path / ("out.h5" if layout == "h5" else "out")
    command = ["store", "export", str(tmp_path / "s.zarr"), "--out", str(out)]
    assert run([*command, "--layout", layout, "--prefix", "v_"]) == 0
    side = tmp_path / "out.h5.json" if layout == "h5" else out / "features.json"
    described = json.loads(side.read_text(encoding="utf-8"))
    assert described["videos"]["npy"]["fps"] == 30.0
    back = import_features(
        [out], store=tmp_path / "back.h5", provenance=provenance(prefix=described["prefix"])
    )
    assert (back.exit_code, back.count("done")) == (0, len(rows))
    store = FeatureStore.open(tmp_path / "back.h5")
    for name, expected in rows.items():
        np.testing.assert_array_equal(np.asarray(store[name]), expected)
        assert store[name].times[0] == pytest.approx(8 / 30)


def test_export_keeps_what_is_there_and_never_makes_a_path_of_a_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["good"], file["..\\up"] = features(0), features(1)
    imported(tmp_path, tmp_path / "in.h5")
    out = tmp_path / "out"
    assert export_features(tmp_path / "s.zarr", out=out, dry_run=True).count("done") == 1
    assert not out.exists()
    first = export_features(tmp_path / "s.zarr", out=out)
    assert (first.exit_code, first.count("done"), first.count("failed")) == (3, 1, 1)
    assert export_features(tmp_path / "s.zarr", out=out).count("reused") == 1
    np.save(out / "good.npy", features(2))
    assert export_features(tmp_path / "s.zarr", out=out).count("failed") == 2
    np.testing.assert_array_equal(np.load(out / "good.npy"), features(2))
    with pytest.raises(TadpipeError, match="something at this path"):
        export_features(tmp_path / "s.zarr", out=tmp_path / "in.h5", layout="h5")


def test_export_at_a_multiple_of_the_stride_takes_every_nth_row(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", features(0))
    imported(tmp_path, tmp_path / "v.npy")
    export_features(tmp_path / "s.zarr", out=tmp_path / "out", stride=8, backbone="i3d")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "v.npy"), features(0)[::2])
