"""Which nodes of a prompt are loose ends, on graphs alone; that the host then runs them is in tests/host/test_switches.py."""

import pytest

from latent_clip.host.front_end.ends import loose_ends, with_ends

SAVE, SELECT, GATE, CLASSIFY = "SaveImage", "LatentCLIPSelect", "LatentCLIPSafetyGate", "LatentCLIPClassify"


def graph(**nodes) -> dict:
    """name=(class, source, ...): a prompt in which each node reads the first output of its sources."""
    return {
        name: {"class_type": kind, "inputs": {f"in_{i}": [source, 0] for i, source in enumerate(sources)}}
        for name, (kind, *sources) in nodes.items()
    }


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (graph(a=("X",), b=(SELECT, "a")), ["b"]),
        (graph(a=("X",), b=(SELECT, "a"), c=(SAVE, "b")), []),
        (graph(a=("X",), b=(SELECT, "a"), c=("Switch", "b", "a"), d=(SAVE, "c")), []),
        (graph(a=("X",), b=(SELECT, "a"), c=("Decode", "b"), d=(SAVE, "a")), ["b"]),
        (graph(a=("X",), b=(SELECT, "a"), c=(GATE, "b"), d=(CLASSIFY, "a")), ["c", "d"]),
        (graph(a=("X",), b=(SAVE, "a")), []),
        ({"a": "no node", "b": {"class_type": SELECT, "inputs": None}, "c": {"inputs": {}}}, ["b"]),
        (graph(a=(SELECT, "b"), b=("X", "a")), ["a"]),
    ],
)
def test_end_is_what_no_output_node_needs(prompt, expected):
    assert loose_ends(prompt, {SAVE}) == expected


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"prompt": []}, {"prompt": "x"}])
def test_body_without_a_prompt_is_left_to_the_host(body):
    assert with_ends(body) is body
