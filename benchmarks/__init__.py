"""Measurements: each prints a table to stderr and, with ``--json``, one JSON object, last on stdout."""
