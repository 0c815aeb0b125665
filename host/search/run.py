"""Search Best Images inside the host: its guider, memory, previews, interruption and a person's choice around `methods.search`."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management as mm
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...methods.rewards import Reward
from ...methods.search import Cut, Plan, plan_search
from ...methods.variety import choose
from ..sampling.active_items import ActiveItems
from ..sampling.drafts import DRAFT_SAMPLER, check_drafter, copy_of, draft_sigmas, drafting_copy
from ..sampling.evaluations import check_sampler, evaluations_of, sampler_name
from ..sampling.guide import noise_level
from ..sampling.item_check import check_items
from ..sampling.noise import OptimizedNoise
from ..sampling.patches import patches_of
from ..scorers.encoders import host_encoders
from ..scorers.latents import THUMBNAIL_SIDE, check_model_space, items_or_blocker, select_items, thumbnails
from ..scorers.scoring import score_with_features
from .inputs import candidates_of, noise_of
from .live import LiveSearch
from .state import Round, SearchSettings, SearchState

LOGGER = logging.getLogger(__name__)
PICTURE_SIDE = 256  # pixels of a picture that a person chooses by


@dataclass(frozen=True)
class SearchResult:
    """Result of a search: LATENT values, the winners' noise, and the report for the front end."""

    best: dict
    rest: object  # a LATENT, or the host's silent stop where everything was kept
    noise: OptimizedNoise
    report: dict


def run_search(
    noise, guider, sampler, sigmas: Tensor, latent: dict, reward: Reward, settings: SearchSettings, drafter=None
) -> SearchResult:
    """Draw many candidates, score them early, and sample the chosen ones to the end.

    Args:
        noise, guider, sampler, sigmas, latent: as SamplerCustomAdvanced takes them; a latent of one item is repeated.
        drafter: MODEL to make the drafts with, at cfg 1; default: the guider's.

    Raises:
        ValueError: nothing to choose from, nothing to save, or no candidate with a finite score. Says what to do.
        LatentSpaceError: a model makes latents that the reward cannot read.
    """
    check_sampler(sampler)
    check_model_space(guider.model_patcher, reward.space)
    if drafter is not None:
        check_drafter(drafter, guider.model_patcher)
    latent = candidates_of(guider.model_patcher, latent, settings.candidates)
    size = len(latent["samples"])
    evaluations = evaluations_of(sampler, sigmas)
    plan = plan_search(
        settings.look, size, settings.keep, evaluations, settings.budget, settings.draft_steps, settings.cuts
    )
    start = noise_of(noise, latent)
    checked = check_items(guider, None, start, latent["samples"], noise.seed)
    if plan.draft_steps and drafter is not None:
        checked += check_items(guider, drafter, start, latent["samples"], noise.seed)
    state = SearchState(plan, settings, reward, noise.seed, [int(index) for index in latent["batch_index"]], checked)
    with LiveSearch(state) as live:
        search = _Search(guider, sampler, sigmas, latent, start, state, live)
        search.run(drafter)
        report = live.report("done", state.thumbnails)
    made = {**latent, "samples": search.samples.to(mm.intermediate_device())}
    winners = state.winners
    rest = [item for item in search.standing() if item not in winners]
    held = OptimizedNoise(
        start[winners].cpu(), noise.seed, [state.batch_index[item] for item in winners], made="searched"
    )
    return SearchResult(select_items(made, winners), items_or_blocker(made, rest), held, report)


class _Search:
    """One search while it runs.

    Attributes:
        samples: raw latents of every candidate as far as it got, (B, C, H, W).
        limit: how many the reward keeps at the end.
    """

    def __init__(
        self, guider, sampler, sigmas: Tensor, latent: dict, noise: Tensor, state: SearchState, live: LiveSearch
    ):
        self.guider, self.sampler, self.sigmas, self.latent, self.noise = guider, sampler, sigmas, latent, noise
        self.state, self.live = state, live
        self.samples = latent["samples"].float().clone()  # the caller keeps its own
        self.limit = state.plan.keep
        self.previewer, self.side = None, THUMBNAIL_SIDE
        if state.settings.chooses != "reward":  # a person sees what the host's own previews would show
            patcher, self.side = guider.model_patcher, PICTURE_SIDE
            self.previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)

    def run(self, drafter) -> None:
        plan, alive = self.state.plan, [*range(self.state.plan.candidates)]
        if plan.draft_steps:
            self._draft(drafter)
            alive = self._choose("draft", plan.draft_steps, alive, self.samples, plan.sampled)
        alive = self._sample(alive)
        self._finish(alive)

    def standing(self) -> list[int]:
        """Every candidate from the best to the worst: by rounds survived, then by its last score, NaN last."""
        last = {item: (place, one.scores[item]) for place, one in enumerate(self.state.rounds) for item in one.alive}
        return sorted(last, key=lambda i: (-last[i][0], math.isnan(last[i][1]), -last[i][1]))

    def _draft(self, drafter) -> None:
        """Draft every candidate in a few steps from its own noise."""
        steps = self.state.plan.draft_steps
        guider = drafting_copy(self.guider, drafter)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = draft_sigmas(sampling, self.state.settings.draft_scheduler, steps, float(self.sigmas[0]))
        active = self._active_items()
        self.samples = self._run_sampler(guider, comfy.samplers.sampler_object(DRAFT_SAMPLER), sigmas, active).float()

    def _sample(self, alive: list[int]) -> list[int]:
        """Sample the active candidates over the whole schedule, with cuts. Returns the remaining ones."""
        plan = self.state.plan
        networks = [network for encoder in host_encoders(self.state.reward) for network in encoder.patchers]
        guider = copy_of(self.guider, None)
        active = self._active_items(with_cuts=bool(plan.cuts))
        if plan.cuts:  # the encoders are loaded beside the model, for nothing may be moved while it samples
            guider.model_patcher.set_additional_models("latent_clip_search", networks)
        if len(alive) < plan.candidates:
            active.keep(alive, guider.model_patcher.model.process_latent_in(self.samples))
        cuts = _DueCuts(plan)
        last_x0 = None

        def on_step(_step: int, x0: Tensor, x: Tensor) -> None:
            nonlocal last_x0
            last_x0 = x0
            for cut in cuts.due(active.predictions):
                if len(active.alive) > cut.keep:  # a person may have kept fewer before
                    self._cut(cut, active, x0, guider.model_patcher.model)

        samples = self._run_sampler(guider, self.sampler, self.sigmas, active, on_step)
        if cuts.left:
            raise ValueError(_not_cut(self.sampler, guider.model_patcher))
        self.samples[active.alive] = samples[active.alive].to(self.samples)
        self.final = self.samples
        if float(self.sigmas[-1]) > 0 and last_x0 is not None:  # noise is left, which no encoder can read
            self.final = guider.model_patcher.model.process_latent_out(last_x0.float()).to(self.samples)
        return active.alive

    def _cut(self, cut: Cut, active: ActiveItems, x0: Tensor, model) -> None:
        """Score the x0 prediction (B, C, H, W), in the model's space, and go on with the best of it."""
        raw = model.process_latent_out(x0.float())
        self.samples[active.alive] = raw[active.alive].to(self.samples)
        name = f"{100 * cut.step / len(self.state.plan.evaluations):.0f}%"
        level = noise_level(model, float(self.sigmas[cut.step - 1]))
        kept = self._choose(name, cut.step, active.alive, raw, cut.keep, level, loaded=True)
        active.keep(kept, x0)

    def _finish(self, alive: list[int]) -> None:
        """Rank the final images; the reward alone chooses the winners."""
        last, ranked = self._rank("final", len(self.state.plan.evaluations), alive, self.final, self.limit)
        last.kept, self.state.winners = ranked, list(ranked)

    def _choose(
        self, name: str, step: int, alive: list[int], raw: Tensor, keep: int, level: float | None = None, loaded=False
    ) -> list[int]:
        """Rank the active candidates, and choose: by the reward, or by asking a person."""
        settings = self.state.settings
        one, ranked = self._rank(name, step, alive, raw, keep, level, loaded)
        chosen = None
        if settings.chooses != "reward":
            scored = [item for item in alive if not math.isnan(one.scores[item])]
            proposed = [] if settings.chooses == "me" else ranked
            chosen = self.live.ask(len(self.state.rounds) - 1, scored, proposed, settings.time_out)
        self.limit = self.state.plan.keep if chosen is None else len(chosen)
        one.kept = ranked if chosen is None else sorted(chosen, key=lambda item: -one.scores[item])
        self.live.send_now()
        return one.kept

    def _rank(
        self, name: str, step: int, alive: list[int], raw: Tensor, keep: int, level: float | None = None, loaded=False
    ) -> tuple[Round, list[int]]:
        """Score the active candidates. Returns the round, and the best `keep` by the reward and its variety."""
        one, features = self._score(name, step, alive, raw, level, loaded)
        scores = torch.tensor([one.scores[item] for item in alive])
        chosen = choose(scores, min(keep, len(alive)), features, self.state.settings.variety)
        return one, [alive[place] for place in chosen]

    def _score(
        self, name: str, step: int, alive: list[int], raw: Tensor, level: float | None, loaded: bool
    ) -> tuple[Round, Tensor]:
        """Score the finite latents of the active candidates and draw them. Features: (alive, D), zeros where not finite."""
        reward, latents = self.state.reward, raw[alive]
        places = latents.flatten(1).isfinite().all(dim=1).nonzero().flatten().tolist()
        scores, features = torch.full((len(alive),), math.nan), torch.zeros(len(alive), 1)
        if places:
            terms, found = score_with_features(reward, latents[places].float(), level, loaded)
            scores[places] = reward.weigh(terms)
            features = found.new_zeros(len(alive), found.shape[1])
            features[places] = found
            self._picture([alive[place] for place in places], latents[places])
        one = Round(name, step, list(alive), dict(zip(alive, scores.tolist())))
        self.state.rounds.append(one)
        if scores.isnan().all():
            raise ValueError(
                f"Got no candidate that could be scored at {name!r} (step {step}): every one of {len(alive)} is NaN or infinite, or its score "
                "is. The model or the scorer overflowed: try another dtype of the model, a lower cfg, or another scheduler."
            )
        if (lost := int(scores.isnan().sum())) > 0:
            LOGGER.warning(
                "Search Best Images: %d of %d candidates could not be scored and were dropped.", lost, len(alive)
            )
        return one, features

    def _picture(self, ids: list[int], raw_latents: Tensor) -> None:
        pictures = thumbnails(raw_latents.float(), self.state.reward.space, self.previewer, self.side)
        self.state.thumbnails = {**self.state.thumbnails, **dict(zip(ids, pictures))}

    def _active_items(self, with_cuts: bool = False) -> ActiveItems:
        encoders, shape = host_encoders(self.state.reward), self.latent["samples"].shape
        scorer_bytes = max(encoder.memory_per_item(shape) for encoder in encoders) if with_cuts else 0
        return ActiveItems(self.state.plan.candidates, self.state.settings.images_at_once, scorer_bytes)

    def _run_sampler(self, guider, sampler, sigmas: Tensor, active: ActiveItems, on_step=None) -> Tensor:
        """Return raw latents (B, C, H, W) of the whole batch; those of dropped items are of no use."""
        active.attach(guider)
        before, plan = self.state.spent, self.state.plan
        show = latent_preview.prepare_callback(guider.model_patcher, plan.cost)

        def callback(step: int, x0: Tensor, x: Tensor, _total: int) -> None:
            self.state.spent = before + active.evaluations
            first = active.alive[0]
            show(min(self.state.spent, plan.cost) - 1, x0[first : first + 1], x, plan.cost)
            if on_step is not None:
                on_step(step, x0, x)
            self.live.step()

        samples = guider.sample(
            self.noise,
            self.latent["samples"],
            sampler,
            sigmas.clone(),  # uni_pc writes into what it is given
            denoise_mask=self.latent.get("noise_mask"),
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=self.state.seed,
        )
        self.state.spent = before + active.evaluations
        return samples


def _not_cut(sampler, patcher) -> str:
    if patches := patches_of(patcher):
        return (
            "Got a model that answered steps without being asked for a prediction, so that nothing was cut. On it: "
            f"{', '.join(patches)}. Bypass what skips steps, or use drafts."
        )
    return (
        f"Got the sampler {sampler_name(sampler) or type(sampler).__name__}, which did not say where it was, so that nothing was cut. "
        "Use drafts instead, or use a sampler of ComfyUI's own."
    )


class _DueCuts:
    """Cuts of a plan, each due after the sampler has made the first prediction of its step."""

    def __init__(self, plan: Plan):
        self.left = [(sum(plan.evaluations[: cut.step - 1]) + 1, cut) for cut in plan.cuts]

    def due(self, predictions: int) -> Sequence[Cut]:
        due = [cut for at, cut in self.left if at <= predictions]
        self.left = self.left[len(due) :]
        return due[-1:]  # of several at once, the last
