"""Settings and progress of a search, as sent to the front end."""

from dataclasses import dataclass, field
from typing import Literal

from ...methods.rewards import Reward
from ...methods.search import EarlyMethod, Plan
from ..front_end.json_values import numbers, reward_terms

Chooses = Literal["reward", "me", "reward proposes, I confirm"]


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search; see the node's tooltips.

    Attributes:
        time_out: seconds to wait for a person; 0: for ever.
        draft_steps, images_at_once: 0 chooses by itself.
    """

    candidates: int = 8
    keep: int = 2
    look: EarlyMethod = "drafts"
    budget: float = 0.5
    variety: float = 0.0
    chooses: Chooses = "reward"
    time_out: float = 300.0
    cuts: str = ""
    draft_steps: int = 0
    draft_scheduler: str = "simple"
    images_at_once: int = 0


@dataclass
class Round:
    """One round: scores of the active candidates by id, and the kept ones, the best first."""

    name: str
    step: int
    alive: list[int]
    scores: dict[int, float]
    kept: list[int] = field(default_factory=list)

    def as_dict(self) -> dict:
        scores = dict(zip(map(str, self.scores), numbers([*self.scores.values()])))
        return {"name": self.name, "step": self.step, "alive": self.alive, "kept": self.kept, "scores": scores}


@dataclass
class SearchState:
    """Progress of a search.

    Attributes:
        checked: model evaluations of the check before the search, see `host.sampling.item_check`.
        spent: model evaluations so far. thumbnails: id → picture from its latest round.
    """

    plan: Plan
    settings: SearchSettings
    reward: Reward
    seed: int
    batch_index: list[int]
    checked: int = 0
    spent: int = 0
    rounds: list[Round] = field(default_factory=list)
    thumbnails: dict[int, str] = field(default_factory=dict)
    winners: list[int] = field(default_factory=list)

    def as_dict(self) -> dict:
        """For JSON, without the pictures."""
        return {
            "candidates": self.plan.candidates,
            "keep": self.plan.keep,
            "look": self.settings.look,
            "chooses": self.settings.chooses,
            "variety": self.settings.variety,
            "seed": self.seed,
            "batch_index": self.batch_index,
            "terms": reward_terms(self.reward),
            "draft_steps": self.plan.draft_steps,
            "cost_spent": self.spent,
            "cost_plan": self.plan.cost,
            "cost_plain": self.plan.plain,
            "cost_check": self.checked,
            "rounds": [one.as_dict() for one in self.rounds],
            "winners": self.winners,
        }
