#!/usr/bin/env python3
"""Queue a workflow on a running ComfyUI, follow it, and print the scores and the ReNO trace that it leaves.

    python queue_and_follow.py workflow_api.json [--server 127.0.0.1:8188] [--set 2.value="a red circle"]

The workflow is in API format: in the page, Workflow → Export (API). Needs aiohttp, which ComfyUI itself needs.
A mistake ends it with one sentence and exit code 1.
"""

import argparse
import asyncio
import json
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit

try:
    import aiohttp
except ImportError:
    sys.exit("aiohttp is missing. Run this with the Python that runs ComfyUI, or install aiohttp with pip.")

MOST = 64_000_000  # bytes of one message of the websocket


class Mistake(Exception):
    """Failure in one line: the cause and the remedy; the last line that is printed."""


def read_workflow(path: Path) -> dict:
    """A file in API format: node id → class_type and inputs."""
    export = "Use Workflow → Export (API) in the page."
    try:
        prompt = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise Mistake(f"{path}: there is no such file. Name the file that Workflow → Export (API) wrote.") from None
    except OSError as error:
        raise Mistake(
            f"{path}: cannot be read ({error.strerror}). Name the file that Workflow → Export (API) wrote."
        ) from None
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{path}: is no JSON ({error}). {export}") from None
    if isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list):
        raise Mistake(f"{path}: is a workflow as the page saves it, and the server needs API format. {export}")
    if isinstance(prompt, dict) and isinstance(prompt.get("prompt"), dict):
        prompt = prompt["prompt"]  # the body of a POST /prompt
    if not (isinstance(prompt, dict) and prompt and all(is_node(node) for node in prompt.values())):
        raise Mistake(f"{path}: is no workflow in API format, where each node has class_type and inputs. {export}")
    return prompt


def is_node(node: object) -> bool:
    """Check that this is a node in API format."""
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def set_inputs(prompt: dict, changes: list[str]) -> None:
    """Apply NODE.INPUT=VALUE; the value is read as JSON where it is JSON, else as text."""
    for change in changes:
        place, found, value = change.partition("=")
        node, dot, name = place.partition(".")
        if not (found and dot and node and name):
            raise Mistake(f"Got --set {change}, expected NODE.INPUT=VALUE, such as 2.value=5.")
        if node not in prompt:
            raise Mistake(f"--set {change}: the workflow has no node {node}; it has {', '.join(prompt)}.")
        if name not in prompt[node]["inputs"]:
            raise Mistake(
                f"--set {change}: {prompt[node]['class_type']} #{node} has no input {name}; it has {', '.join(prompt[node]['inputs'])}."
            )
        try:
            prompt[node]["inputs"][name] = json.loads(value)
        except json.JSONDecodeError:
            prompt[node]["inputs"][name] = value


def check_address(server: str) -> None:
    """Refuse what is no address of http."""
    try:
        parts = urlsplit(server)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise Mistake(f"Got --server {server}, expected an address such as 127.0.0.1:8188.")


async def answer_of(response: aiohttp.ClientResponse) -> dict:
    """The JSON object that the server answers."""
    try:
        answer = json.loads(await response.read())
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise Mistake(
            f"{response.url} answers with status {response.status} and no JSON object. Is it a ComfyUI? Name another with --server."
        )
    return answer


async def queue(session: aiohttp.ClientSession, prompt: dict, client_id: str) -> str:
    """POST /prompt; returns the prompt's id. Ends with the host's reasons where it refuses."""
    async with session.post("/prompt", json={"prompt": prompt, "client_id": client_id}) as response:
        answer = await answer_of(response)
    if response.status != 200 or "prompt_id" not in answer:
        raise Mistake("\n".join(["refused:", *refusals(answer)]))
    for line in refusals({"node_errors": answer.get("node_errors")}):  # the host runs the other outputs
        print(f"left out: {line}", file=sys.stderr)
    return answer["prompt_id"]


def refusals(answer: dict) -> list[str]:
    """One sentence for each reason, with what to do."""
    lines = [
        f"{node.get('class_type')} #{key}: {error.get('message')}: {error.get('details')}. {remedy(error)}".strip()
        for key, node in (answer.get("node_errors") or {}).items()
        for error in node.get("errors", [])
    ]
    error = answer.get("error") or {}
    if lines or not error:
        return lines
    if not isinstance(error, dict):
        return [str(error)]
    words = " ".join(filter(None, [error.get("message"), error.get("details")]))
    return [f"{words} {remedy(error)}".strip()]


def remedy(error: dict) -> str:
    """A hint for the reasons that come most often."""
    words = f"{error.get('type')} {error.get('message')}"
    if "missing_node_type" in words or "does not exist" in words or "not found" in words:
        return "Install the node pack that has it on the server, and restart the server."
    if "value_not_in_list" in words:
        return "If it is a model file, put it into the server's models folder, or choose one that is there with --set."
    if "prompt_no_outputs" in words:
        return "Add a node that saves or shows something, such as Save Image."
    if "required_input_missing" in words:
        return "Connect the input in the page, and export the workflow again."
    return ""


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
            raise Mistake(f"failed in {data['node_type']} #{data['node_id']}: {data['exception_message'].strip()}")
        elif kind == "execution_interrupted":
            raise Mistake("interrupted: somebody stopped the prompt on the server. Queue it again.")
        if kind == "executing" and data.get("node") is None:
            return  # sent after the history is written, which execution_success is not
    raise Mistake("The server closed the connection before the prompt ended. See its log, and start it again.")


async def reports(session: aiohttp.ClientSession, prompt_id: str) -> dict[str, list[dict]]:
    """GET /history: node id → what a node of this pack reported, once for each latent of a list."""
    async with session.get(f"/history/{prompt_id}") as response:
        found = (await answer_of(response)).get(prompt_id)
    if found is None:
        raise Mistake(
            "The server no longer has this prompt in its history: it was restarted, or somebody cleared it. Queue it again."
        )
    return {node: output["latent_clip"] for node, output in found["outputs"].items() if "latent_clip" in output}


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


async def run(server: str, prompt: dict) -> None:
    """Queue a prompt, follow it, and show its reports."""
    client_id = uuid.uuid4().hex
    async with aiohttp.ClientSession(server) as session:
        # listen first: what is sent before the websocket is open is not sent again
        async with session.ws_connect(f"/ws?clientId={client_id}", max_msg_size=MOST) as socket:
            prompt_id = await queue(session, prompt, client_id)
            await follow(socket, prompt, prompt_id)
        for node, found in (await reports(session, prompt_id)).items():
            name = f"{prompt[node]['class_type']} #{node}" if node in prompt else f"#{node}"  # in an expanded node
            for report in found:
                show(name, report)


def main() -> None:
    """Read the command line, then queue, follow and show."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workflow", type=Path, help="API format, see Workflow → Export (API)")
    parser.add_argument("--server", default="127.0.0.1:8188")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="NODE.INPUT=VALUE")
    options = parser.parse_args()
    server = options.server if "://" in options.server else f"http://{options.server}"
    try:
        check_address(server)
        prompt = read_workflow(options.workflow)
        set_inputs(prompt, options.changes)
        asyncio.run(run(server, prompt))
    except Mistake as mistake:
        sys.exit(str(mistake))
    except aiohttp.WSServerHandshakeError as error:
        sys.exit(
            f"{server} answers with status {error.status}, as no ComfyUI does. Name the address of a ComfyUI with --server."
        )
    except (aiohttp.ClientError, OSError) as error:
        sys.exit(f"No ComfyUI answers at {server} ({error}). Start it, or name its address with --server.")
    except KeyboardInterrupt:
        sys.exit("Stopped here; the prompt goes on on the server.")


if __name__ == "__main__":
    main()
