#!/usr/bin/env python3
"""Queue a workflow on a running ComfyUI, follow it, and print the scores and the ReNO trace that it leaves.

    python queue_and_follow.py workflow_api.json [--server 127.0.0.1:8188] [--set 2.value="a red circle"]

The workflow is in API format: in the page, Workflow → Export (API). Needs aiohttp, which ComfyUI itself needs.
"""

import argparse
import asyncio
import json
import uuid
from pathlib import Path

import aiohttp


async def queue(session: aiohttp.ClientSession, prompt: dict, client_id: str) -> str:
    """POST /prompt; returns the prompt's id. Exits with the host's reasons where it refuses."""
    async with session.post("/prompt", json={"prompt": prompt, "client_id": client_id}) as response:
        answer = await response.json()
    if response.status != 200:
        raise SystemExit(f"refused: {json.dumps(answer, indent=2)}")
    return answer["prompt_id"]


async def follow(socket: aiohttp.ClientWebSocketResponse, prompt: dict, prompt_id: str) -> None:
    """Print what the host says about this prompt until it has ended."""
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue  # binary messages are preview images
        event = json.loads(message.data)
        kind, data = event["type"], event["data"]
        if data.get("prompt_id") != prompt_id:
            continue  # somebody else's, or about the queue
        if kind == "executing" and data.get("node") in prompt:
            print(f"running {prompt[data['node']]['class_type']} #{data['node']}")
        elif kind == "progress":
            print(f"  {data['value']} of {data['max']}")
        elif kind == "latent_clip.reno" and data["iterations"]:
            latest = data["iterations"][-1]
            print(f"  iteration {latest['index']}: rewards {latest['rewards']}")
        elif kind == "execution_error":
            raise SystemExit(f"{data['node_type']} #{data['node_id']}: {data['exception_message']}")
        elif kind == "execution_interrupted":
            raise SystemExit("interrupted")
        if kind == "executing" and data.get("node") is None:
            return  # sent after the history is written, which execution_success is not


async def reports(session: aiohttp.ClientSession, prompt_id: str) -> dict[str, list[dict]]:
    """GET /history: node id → what a node of this pack reported, once for each latent of a list."""
    async with session.get(f"/history/{prompt_id}") as response:
        outputs = (await response.json())[prompt_id]["outputs"]
    return {node: output["latent_clip"] for node, output in outputs.items() if "latent_clip" in output}


def show(name: str, report: dict) -> None:
    """A few lines per report; `kind` says what it holds."""
    if report["kind"] == "scores":
        print(f"{name}: scores {report['scores']}" + (f", kept {report['kept']}" if report["kept"] else ""))
        for term in report["terms"]:
            print(f"  {term['name']} × {term['weight']}: {term['values']}")
    elif report["kind"] == "classes":
        print(f"{name}: labels {report['labels']}")
    elif report["kind"] == "reno":
        print(f"{name}: best rewards {report['best']}, found in iterations {report['best_iteration']}")
        for iteration in report["iterations"]:
            print(f"  {iteration['index']:3d}  {iteration['seconds']:6.2f} s  rewards {iteration['rewards']}")
    else:
        print(f"{name}: {json.dumps(report)[:2000]}")


def set_inputs(prompt: dict, changes: list[str]) -> None:
    """Apply NODE.INPUT=VALUE; the value is read as JSON where it is JSON, else as text."""
    for change in changes:
        (node, name), value = change.split("=", 1)[0].split(".", 1), change.split("=", 1)[1]
        try:
            prompt[node]["inputs"][name] = json.loads(value)
        except json.JSONDecodeError:
            prompt[node]["inputs"][name] = value


async def main() -> None:
    """Read the command line, then queue, follow and show."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workflow", type=Path, help="API format, see Workflow → Export (API)")
    parser.add_argument("--server", default="127.0.0.1:8188")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="NODE.INPUT=VALUE")
    options = parser.parse_args()
    prompt = json.loads(options.workflow.read_text(encoding="utf-8"))
    set_inputs(prompt, options.changes)
    client_id = uuid.uuid4().hex
    async with aiohttp.ClientSession(f"http://{options.server}") as session:
        # listen first: what is sent before the websocket is open is not sent again
        async with session.ws_connect(f"/ws?clientId={client_id}", max_msg_size=0) as socket:
            prompt_id = await queue(session, prompt, client_id)
            await follow(socket, prompt, prompt_id)
        for node, found in (await reports(session, prompt_id)).items():
            name = f"{prompt[node]['class_type']} #{node}" if node in prompt else f"#{node}"  # in an expanded node
            for report in found:
                show(name, report)


if __name__ == "__main__":
    asyncio.run(main())
