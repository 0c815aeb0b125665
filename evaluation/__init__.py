"""Benchmarks of generated images and of judges, in the formats that the field uses: what goes in, what comes out, and how sure it is.

generate → the benchmark's own folder → a scorer → one kind of record → tables, comparisons, controls. A benchmark is one file, and
so is a scorer. Everything here takes pictures, files and addresses of servers; nothing knows how a server makes a picture.
"""

from __future__ import annotations


class EvaluationError(ValueError):
    """What cannot be evaluated; the message says what came, what was expected and what to do."""
