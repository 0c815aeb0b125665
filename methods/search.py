"""Plan of a search among candidates: when to evaluate them, how many to keep then, and the cost.

Costs are counted in model evaluations, one for each image and each time that the network is asked about it.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

EarlyMethod = Literal["drafts", "cuts", "both"]

MIN_DRAFT_STEPS = 3  # one or two say nothing of the picture (docs/search-study.md)
EARLIEST = 0.15  # of the sampling: before, a prediction says nothing of the picture
TIMES = (1.0, 1.75, 3.0)  # of three cuts, in proportion; the best schedules of 20 steps are 4, 6, 9 and 4, 7, 12
ARROW = re.compile(r"\s*(?:→|->|=>)\s*")


@dataclass(frozen=True)
class Cut:
    """Keep so many candidates once so many steps of the sampling have made their prediction."""

    step: int
    keep: int


@dataclass(frozen=True)
class Plan:
    """A search.

    Attributes:
        candidates, keep: how many come in, and how many are wanted.
        evaluations: of one image, for each step of the sampling.
        draft_steps: evaluations of one draft; 0 without drafts.
        sampled: how many candidates are sampled with all steps, at the start of it.
        cuts: in the sampling, the first one first.
    """

    candidates: int
    keep: int
    evaluations: tuple[int, ...]
    draft_steps: int = 0
    sampled: int = 0
    cuts: tuple[Cut, ...] = ()

    @property
    def plain(self) -> int:
        """Evaluations of sampling every candidate to its end."""
        return self.candidates * sum(self.evaluations)

    @property
    def cost(self) -> int:
        """Evaluations of this search."""
        return self.candidates * self.draft_steps + cost_of_cuts(self.sampled, self.cuts, self.evaluations)


def cost_of_cuts(start: int, cuts: tuple[Cut, ...], evaluations: tuple[int, ...]) -> int:
    """Evaluations of a sampling that starts with `start` images. A cut reads the first evaluation of its step."""
    alive, cost, quotas = start, 0, {cut.step: cut.keep for cut in cuts}
    for step, asked in enumerate(evaluations, start=1):
        cost += alive
        alive = quotas.get(step, alive)
        cost += alive * (asked - 1)
    return cost


def plan_search(
    look: EarlyMethod,
    candidates: int,
    keep: int,
    evaluations: tuple[int, ...],
    budget: float,
    draft_steps: int = 0,
    cuts: str = "",
) -> Plan:
    """Plan a search within a budget.

    Args:
        evaluations: of one image, for each step of the sampling.
        budget: share of the evaluations that all candidates would cost. Where no schedule of use is so cheap, the
            cheapest one of use is taken, so read the plan's cost.
        draft_steps: 0 takes as many as the budget pays for, at least `MIN_DRAFT_STEPS`.
        cuts: such as "20% → 6, 40% → 3"; empty takes those that the budget pays for.

    Raises:
        ValueError: nothing to choose from, nothing to save, or cuts that are none. Says what to do.
    """
    steps = len(evaluations)
    _check(look, candidates, keep, steps, budget, draft_steps)
    if look == "cuts":
        chosen = parse_cuts(cuts, steps, candidates, keep) or cuts_for(budget, candidates, keep, evaluations)
        plan = Plan(candidates, keep, evaluations, 0, candidates, chosen)
    else:
        sampled, late = _late_cuts(cuts, steps, candidates, keep) if look == "both" else (keep, ())
        rest = budget * candidates * sum(evaluations) - cost_of_cuts(sampled, late, evaluations)
        drafts = draft_steps or max(MIN_DRAFT_STEPS, math.floor(rest / candidates + 1e-9))
        plan = Plan(candidates, keep, evaluations, drafts, sampled, late)
    if plan.cost >= plan.plain:
        how = f"{plan.draft_steps} draft steps" if plan.draft_steps else "these cuts"
        raise ValueError(
            f"Got {candidates} candidates of {sum(evaluations)} model evaluations each, of which {how} and {keep} kept would save nothing "
            f"({plan.cost} evaluations, {plan.plain} without a search). Keep fewer, take fewer draft steps, or sample the whole batch "
            "and connect Select Best Latents."
        )
    return plan


def _late_cuts(cuts: str, steps: int, candidates: int, keep: int) -> tuple[int, tuple[Cut, ...]]:
    """Number of drafts that are sampled, and the cuts after them."""
    if late := parse_cuts(cuts, steps, candidates, keep):
        return min(candidates, max(late[0].keep + 1, keep)), late
    sampled = _between(candidates, keep)
    return sampled, (Cut(max(1, steps // 2), keep),) if sampled > keep else ()


def _between(candidates: int, keep: int) -> int:
    """Number of drafts that are sampled where a later cut follows: the geometric mean."""
    return min(candidates, math.ceil(math.sqrt(candidates * keep) - 1e-9))


def cuts_for(budget: float, candidates: int, keep: int, evaluations: tuple[int, ...]) -> tuple[Cut, ...]:
    """Up to three cuts whose quotas fall by the same factor, as late as the budget pays for."""
    steps = len(evaluations)
    quotas = [round(candidates * (keep / candidates) ** (i / 3)) for i in (1, 2, 3)]
    earliest = max(1, round(EARLIEST * steps))
    best = _spread(earliest, quotas, candidates, steps)
    for first in range(earliest + 1, steps):
        cuts = _spread(first, quotas, candidates, steps)
        if cost_of_cuts(candidates, cuts, evaluations) > budget * candidates * sum(evaluations):
            break
        best = cuts
    return best


def _spread(first: int, quotas: list[int], candidates: int, steps: int) -> tuple[Cut, ...]:
    """Cuts at the times that follow from the first; of several at one step the last counts, and nothing is cut twice."""
    at = {min(steps - 1, max(first, math.floor(first * time + 1e-9))): quota for time, quota in zip(TIMES, quotas)}
    cuts: list[Cut] = []
    for step, quota in sorted(at.items()):
        if quota < (cuts[-1].keep if cuts else candidates):
            cuts.append(Cut(step, quota))
    return tuple(cuts)


def parse_cuts(text: str, steps: int, candidates: int, keep: int) -> tuple[Cut, ...]:
    """Cuts from a text such as "20% → 6, 40% -> 3": a share of the sampling, and how many to keep then.

    Raises:
        ValueError: no such text, a share outside of the sampling, or more to keep than the cut before left.
    """
    cuts: list[Cut] = []
    for part in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        share, quota = _parse_cut(part)
        step, alive = max(1, round(share / 100 * steps)), cuts[-1].keep if cuts else candidates
        if not 0 < share < 100 or step >= steps:
            raise ValueError(
                f"Got the cut {part!r}, which lies outside of a sampling of {steps} steps. Expected more than 0% and, for so many steps, "
                f"at most {100 * (steps - 1) / steps:.0f}%: nothing is left to save after the last step."
            )
        if cuts and step <= cuts[-1].step:
            raise ValueError(
                f"Got the cut {part!r}, which comes at step {step} of {steps} and so not after the one before, at step {cuts[-1].step}. "
                "Write cuts from early to late, each at a step of its own."
            )
        if not keep <= quota < alive:
            raise ValueError(
                f"Got the cut {part!r} where {alive} candidates are left and {keep} are wanted at the end. "
                f"Expected to keep fewer than {alive} and at least {keep}."
            )
        cuts.append(Cut(step, quota))
    return tuple(cuts)


def _parse_cut(part: str) -> tuple[float, int]:
    pieces = ARROW.split(part)
    try:
        share, quota = pieces
        if not share.endswith("%"):
            raise ValueError
        return float(share[:-1]), int(quota)
    except ValueError:
        raise ValueError(
            f"Got the cut {part!r}, expected such as 20% → 6, or 20% -> 6: keep six after a fifth."
        ) from None


def _check(look: str, candidates: int, keep: int, steps: int, budget: float, draft_steps: int) -> None:
    if look not in ("drafts", "cuts", "both"):
        raise ValueError(f"Got look = {look!r}, expected drafts, cuts or both.")
    if candidates < 2:
        raise ValueError(f"Got {candidates} candidate, expected at least 2 to choose from. Set candidates higher.")
    if not 1 <= keep < candidates:
        raise ValueError(
            f"Got keep = {keep} of {candidates} candidates, expected 1 to {candidates - 1}. Keep fewer, or draw more candidates."
        )
    if not 0 < budget < 1:
        raise ValueError(
            f"Got budget = {budget:g}, expected more than 0 and less than 1; 0.5 is half of the full cost."
        )
    if draft_steps < 0:
        raise ValueError(f"Got draft_steps = {draft_steps}, expected 0 for what the budget pays, or a number of steps.")
    if steps < 2:
        raise ValueError(
            f"Got a sampling of {steps} step{'s' * (steps != 1)}, in which there is nothing to evaluate early. "
            "Sample the whole batch and connect Select Best Latents; Optimize Noise makes more of one step."
        )
