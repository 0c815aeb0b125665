"""The workflows that version 0.1 shipped, as people have saved them, and the prompts that version 0.1 made of them."""

import json
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
SAVED = sorted((DATA / "workflows-0.1").glob("*.json"))
PROMPTS: dict[str, dict] = json.loads((DATA / "prompts-0.1.json").read_text(encoding="utf-8"))
"""{workflow: {node id: class_type and inputs}}, written by version 0.1 in ComfyUI 0.30.0."""
