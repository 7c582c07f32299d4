"""Names of videos as text on one line."""

from __future__ import annotations

import os

from tadpipe.pipeline.video_files import printable


def test_any_name_is_shown_on_one_line() -> None:
    assert printable("höhe 跳 🎬") == "höhe 跳 🎬"
    assert printable("a\nb\x1b[2J") == "a\\nb\\x1b[2J"
    assert printable(os.fsdecode(b"a\xff")) == "a\\xff"
