"""Reader of a server's history of a prompt: its pictures, seconds and rewards. The content is untrusted."""

from __future__ import annotations

import json
import math

from . import EvaluationError

KEYS = ("filename", "subfolder", "type")  # of a picture, as GET /view takes them
SHOWN = 1000  # characters of a server's text in a message


class ServerGoneError(EvaluationError):
    """A server that does not answer, answers unlike any ComfyUI, or has lost a prompt in a restart."""


class TaskFailedError(EvaluationError):
    """A prompt that the server refused or failed."""


def one_line(text: object, limit: int = SHOWN) -> str:
    """Make a server's text safe for a message: one printable line of at most `limit` characters."""
    shown = str(text)[: 4 * limit]
    shown = " ".join("".join(c if c.isprintable() else " " for c in shown).split())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def as_object(content: bytes) -> dict:
    """Parse a JSON object.

    Raises:
        ValueError: the content is no JSON object, or nested too deeply.
    """
    try:
        answer = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(answer, dict):
        raise ValueError("expected an object")
    return answer


def images_of(history: dict, output: str | None) -> list[dict[str, str]]:
    """Return the picture files of a finished prompt; saved files go before previews.

    Raises:
        TaskFailedError: the prompt failed, or several nodes have pictures.
    """
    _check_success(history["status"])
    outputs = {node: _files(_dict(out).get("images")) for node, out in _dict(history.get("outputs", {})).items()}
    found = {node: images for node, images in outputs.items() if images and output in (None, node)}
    saved = {node: images for node, images in found.items() if all(image["type"] == "output" for image in images)}
    found = saved or found
    if len(found) != 1:
        raise TaskFailedError(
            f"Got pictures from {len(found)} nodes ({one_line(', '.join(found)) or 'none'}), expected one node that saves them. "
            "Use one Save Image, or give it the title output."
        )
    return next(iter(found.values()))


def rewards_of(history: dict, count: int) -> list[float | None] | None:
    """Return the rewards that Score, Select, Search or Optimize Noise report; None unless exactly one report fits the pictures.

    A reward that is not finite is None, since it cannot be compared.
    """
    reports = [
        _dict(report)
        for out in _dict(history.get("outputs", {})).values()
        for report in _list(_dict(out).get("latent_clip") or [])
    ]
    found = [values for report in reports if len(values := _values(report)) == count and all(map(_is_number, values))]
    return [float(value) if math.isfinite(value) else None for value in found[0]] if len(found) == 1 else None


def _values(report: dict) -> list:
    if report.get("winners") and report.get("rounds"):  # Search: the last round scores the finished pictures
        scores = _dict(_dict(_list(report["rounds"])[-1]).get("scores", {}))
        values = [scores.get(str(winner)) for winner in _list(report["winners"])]
    else:
        values = _list((report.get("best") if report.get("kind") == "reno" else report.get("scores")) or [])
    return [values[at] for at in _list(report["kept"])] if values and report.get("kept") else values


def seconds_of(history: dict) -> float | None:
    """Return the seconds from start to success of a prompt by the host's own messages; None if these lack a time."""
    times = {kind: data.get("timestamp") for kind, data in _messages(history["status"]) if isinstance(data, dict)}
    began, ended = times.get("execution_start"), times.get("execution_success")
    if not (_is_number(began) and _is_number(ended)):
        return None
    seconds = (ended - began) / 1000
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def refusal(answer: dict) -> str:
    """Summarise a refused POST /prompt in one line."""
    lines = [
        f"{node['class_type']} #{key}: {error['message']}: {error['details']}"
        for key, node in (answer.get("node_errors") or {}).items()
        for error in node["errors"]
    ]
    error = answer.get("error") or {}
    return one_line(
        "; ".join(lines) or (f"{error.get('message')}: {error.get('details')}" if isinstance(error, dict) else error)
    )


def reason_of(content: bytes) -> str:
    """Summarise any refusing answer in one line."""
    try:
        return refusal(as_object(content))
    except Exception:  # not ComfyUI's form: the text itself is the best reason
        return one_line(content[: 1 << 12].decode(errors="replace"), 200)


def _check_success(status: dict) -> None:
    """Raise TaskFailedError with the host's reason if the prompt failed."""
    for kind, data in _messages(status):
        if kind == "execution_error":
            words = [
                str(_dict(data).get(key, "?"))
                for key in ("node_type", "node_id", "exception_type", "exception_message")
            ]
            raise TaskFailedError(one_line("{} #{}: {}: {}".format(*words)))
    if status.get("status_str") != "success":
        raise TaskFailedError(f"ended as {one_line(status.get('status_str'), 60)}, perhaps interrupted.")


def _messages(status: dict) -> list[tuple[str, object]]:
    return [(str(kind), data) for kind, data in _list(_dict(status).get("messages") or [])]


def _files(images: object) -> list[dict[str, str]]:
    """Return the entries as files; [] if one of them names no file, as in some packs."""
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        return []
    found = [{key: image.get(key, "") for key in KEYS} for image in images]
    return found if all(isinstance(value, str) for image in found for value in image.values()) else []


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _dict(value: object) -> dict:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {one_line(repr(value), 60)}")
    return value


def _list(value: object) -> list:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {one_line(repr(value), 60)}")
    return value
