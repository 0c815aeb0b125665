#!/usr/bin/env python3
"""Check, as a service does, that a workflow shows and stores nothing that no Safety Gate has let through.

    python require_gate.py workflow_api.json --file latent-clip-b-8.safetensors --vae sd_xl_base_1.0.safetensors [--server 127.0.0.1:8188]

The check is `require_gate` of the pack, `pip install` of its folder makes it importable. It needs neither torch nor ComfyUI. `checked_request`
below is what a service passes on to ComfyUI's POST /prompt.
"""

import argparse
import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from latent_clip.methods.require_gate import GateModel, Refused, require_gate

SETTINGS = {"concepts": "i2p", "typed": "", "categories": "", "thresholds": "", "fit": "tiles", "views": 0}


def checked_request(body: object, object_info: Mapping, models: list[GateModel]) -> dict:
    """The request to queue for a client's: its prompt as it was checked, and nothing else but the client's id.

    Raises:
        Refused: answer 400 with the message.
    """
    if not isinstance(body, dict) or "prompt" not in body:
        raise Refused('The request has no prompt, expected {"prompt": ..., "client_id": ...}.')
    require_gate(body["prompt"], object_info, models=models, settings=SETTINGS, extra_data=body.get("extra_data"))
    return {"prompt": body["prompt"], "client_id": str(body.get("client_id", ""))}


def main() -> None:
    """Check one file against a running ComfyUI."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workflow", type=Path, help="API format, see Workflow → Export (API)")
    parser.add_argument("--file", required=True, help="the Latent-CLIP that gates may check with")
    parser.add_argument(
        "--vae",
        action="append",
        required=True,
        help="a file with the VAE that may decode behind the gate; may be repeated",
    )
    parser.add_argument("--server", default="127.0.0.1:8188")
    options = parser.parse_args()
    with urllib.request.urlopen(f"http://{options.server}/object_info", timeout=60) as response:
        object_info = json.load(response)
    try:
        prompt = json.loads(options.workflow.read_text(encoding="utf-8"))
        checked_request({"prompt": prompt}, object_info, [GateModel(inputs={"file": options.file}, vaes=options.vae)])
    except Refused as error:
        raise SystemExit(f"refused: {error}") from error
    except (ValueError, RecursionError) as error:
        raise SystemExit(f"refused: {options.workflow} is no JSON that can be read: {error}") from error
    print("everything that it shows comes through a Safety Gate")


if __name__ == "__main__":
    main()
