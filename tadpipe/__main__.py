"""`python -m tadpipe` is the `tadpipe` command."""

from __future__ import annotations

from tadpipe.cli.main import main

if __name__ == "__main__":
    main()
