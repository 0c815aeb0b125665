"""Moved: python ComfyUI-Latent-CLIP calibrate … (or `latent-clip calibrate`). This file goes with the next version."""

import sys
from pathlib import Path

sys.exit(f"error: this command has moved: python {Path(__file__).resolve().parent.parent} calibrate …")
