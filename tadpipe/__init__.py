"""tadpipe: temporal action detection from videos, in two cached stages or end to end."""

from __future__ import annotations

__version__ = "0.1.0"
