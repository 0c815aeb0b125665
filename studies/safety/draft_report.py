"""The tables on looking before sampling in docs/safety-study.md, from what studies.safety_ahead measured."""

from __future__ import annotations

from ...methods.calibration import Share
from ..report import table

WAYS = ["way", "star", "star-like", "unreadable", "innocent replaced", "star-like passes the gate behind it", "innocent replaced or blocked by it"]  # fmt: skip
CELLS = ("star", "like", "unreadable", "replaced", "like passes", "lost")


def _exact(value: dict | None) -> str:
    if value is None:
        return "–"
    share = Share(value["hits"], value["n"])
    low, high = share.interval
    return f"{100 * share.value:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def _ways(found: dict, name: str = "star") -> str:
    rows = [[way, *(_exact(row[cell]) for cell in CELLS)] for way, row in found.items() if way != "thresholds"]
    return table([column.replace("star", name) for column in WAYS], rows)


def _identical(found: dict) -> str:
    row = found["look-ahead"]["identical"]
    return f"{row['hits']} of {row['n']} innocent pictures whose draft was let pass are identical bit for bit."


def _judges(judges: dict) -> str:
    rows = [
        [name, ", ".join(f"{judge} {at:.2f}" for judge, at in row["thresholds"].items()), _exact(row["like"]), _exact(row["like passes"]),
         _exact(row["innocent suspected"]), f"{row['p']:.2g}"]
        for name, row in judges.items()
    ]  # fmt: skip
    return table(
        [
            "who judges the draft",
            "thresholds",
            "star-like",
            "star-like and passes the gate",
            "innocent suspected",
            "p against the first",
        ],
        rows,
    )


def _run_by_two(found: dict) -> str:
    one, two = found["stars"]["euler"]["look-ahead"], found["two judges, run"]
    rows = {"one judge, at the gate's threshold": one, "two judges, at half the rate each": two}
    names = ("star", "like", "unreadable", "replaced", "right", "like passes", "lost")
    columns = ["drafts judged by", *WAYS[1:5], "innocent right", *WAYS[5:]]
    return table(columns, [[name, *(_exact(row[cell]) for cell in names)] for name, row in rows.items()])


def _against(found: dict, first: str, second: str, names: tuple[str, str]) -> str:
    rows = [[name, row[first], row[second], f"{row['p']:.2g}"] for name, row in found.items()]
    return table(["of a picture", *names, "p"], rows)


def _attacks(found: dict) -> str:
    rows = [
        [name, _exact(row["suspected"]), _exact(row["like"]), _exact(row["like passes"])] for name, row in found.items()
    ]
    return table(["what", "drafts suspected", "star-like", "star-like and passes the gate"], rows)


def _turned(found: dict) -> str:
    rows = [
        [f"{100 * float(share):.0f} %", way, _exact(row["like"]), _exact(row["like passes"])]
        for share, ways in found.items() for way, row in ways.items()
    ]  # fmt: skip
    return table(["the prompt turns to its star after", "way", "star-like", "star-like and passes the gate"], rows)


def _costs(found: dict) -> str:
    kinds = [name for name in next(iter(found.values())) if name != "no safety"]
    rows = [
        [steps, f"{row['no safety']['evaluations']:g}", *(f"{row[kind]['evaluations']:g} ({row[kind]['time']:.2f}×)" for kind in kinds)]
        for steps, row in found.items()
    ]  # fmt: skip
    return table(["steps", "no safety", *kinds], rows)


def ahead_report(found: dict) -> str:
    """The measured tables as markdown."""
    protocol, parts = found["protocol"], []
    gates = protocol["gates"]
    for sampler, ways in found["stars"].items():
        parts += [f"### Look-ahead, stars, {sampler}: {ways['look-ahead']['like']['n']} pictures of stars, {ways['look-ahead']['replaced']['n']} innocent", _ways(ways), _identical(ways)]  # fmt: skip
    parts += [f"### Look-ahead, anything red, euler: as many as with euler above, threshold {gates['red']:.2f}", _ways(found["red"], "red"), _identical(found["red"])]  # fmt: skip
    for shape, ways in found["wide"].items():
        limits = ways["thresholds"]
        parts += [
            f"### Look-ahead, stars, {shape}, euler: {ways['look-ahead']['like']['n']} pictures of stars, {ways['look-ahead']['replaced']['n']} innocent; thresholds of this shape: "
            f"drafts {limits['draft']:.2f}, gate {limits['picture']:.2f}",
            _ways(ways),
        ]  # fmt: skip
    return "\n\n".join([
        *parts,
        "### Look-ahead against guidance, euler, paired by prompt and noise (exact McNemar)",
        _against(found["pairs"], "guidance only", "look-ahead only", ("by guidance only", "by look-ahead only")),
        "### One judge of drafts or two, at equal suspicion of 600 other innocent drafts",
        _judges(found["judges"]),
        "### The two judges, run: the same prompts and noises, euler",
        _run_by_two(found),
        _against(found["two judges, run"]["against one"], "one only", "two only", ("with one judge only", "with two only")),
        "### Attacks on look-ahead",
        _attacks(found["attacks"] | found["rerolled"]),
        _turned(found["turned"]),
        "### What look-ahead costs: evaluations of the model for one picture of eight in a batch (processor's time against no safety)",
        _costs(found["costs"]),
    ])  # fmt: skip
