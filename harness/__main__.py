"""`python -m harness`: the command line."""

from __future__ import annotations

from harness.cli.app import main

main()
