"""Benchmarks of generated images and of encoders, in the field's own formats, with confidence intervals and controls.

generate → the benchmark's own folders → a scorer → one kind of record → tables, comparisons, controls. Each benchmark is one file, and
so is each scorer. The code here handles pictures, files and servers' addresses; it does not know how a server makes a picture.
"""

from __future__ import annotations


class EvaluationError(ValueError):
    """Input that cannot be evaluated; the message names what was given, what was expected and what to do."""
