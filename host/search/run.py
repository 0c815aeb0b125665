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
from ..sampling.drafts import DRAFT_SAMPLER, check_drafter, copy_of, draft_sigmas, drafting_copy
from ..sampling.evaluations import check_sampler, evaluations_of, sampler_name
from ..sampling.guide import noise_level
from ..sampling.noise import OptimizedNoise
from ..sampling.patches import patches_of
from ..sampling.row_check import check_rows
from ..sampling.rows import Rows
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
    """What a search found: LATENT values, the winners' noise, and the report for the page."""

    best: dict
    rest: object  # a LATENT, or the host's silent stop where everything was kept
    noise: OptimizedNoise
    report: dict


def run_search(
    noise, guider, sampler, sigmas: Tensor, latent: dict, reward: Reward, settings: SearchSettings, drafter=None
) -> SearchResult:
    """Draw many, look early, and sample the chosen ones to the end.

    Args:
        noise, guider, sampler, sigmas, latent: as SamplerCustomAdvanced takes them; a latent of one item is repeated.
        drafter: MODEL to make the drafts with, at cfg 1; default: the guider's.

    Raises:
        ValueError: nothing to choose from, nothing to save, or no candidate that could be judged. Says what to do.
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
    checked = check_rows(guider, None, start, latent["samples"], noise.seed)
    if plan.draft_steps and drafter is not None:
        checked += check_rows(guider, drafter, start, latent["samples"], noise.seed)
    state = SearchState(plan, settings, reward, noise.seed, [int(index) for index in latent["batch_index"]], checked)
    with LiveSearch(state) as live:
        search = _Search(guider, sampler, sigmas, latent, start, state, live)
        search.run(drafter)
        report = {**live.message("done", state.thumbnails)}
    del report["waiting"], report["serial"]
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
            alive = self._look("draft", plan.draft_steps, alive, self.samples, plan.sampled)
        alive = self._sample(alive)
        self._finish(alive)

    def standing(self) -> list[int]:
        """Every candidate from the best to the worst: the longer it stayed, then by its last score; what has none, last."""
        last = {item: (place, one.scores[item]) for place, one in enumerate(self.state.rounds) for item in one.alive}
        return sorted(last, key=lambda i: (-last[i][0], math.isnan(last[i][1]), -last[i][1]))

    def _draft(self, drafter) -> None:
        """Every candidate in a few steps from its own noise."""
        steps = self.state.plan.draft_steps
        guider = drafting_copy(self.guider, drafter)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = draft_sigmas(sampling, self.state.settings.draft_scheduler, steps, float(self.sigmas[0]))
        rows = self._rows()
        self.samples = self._run_sampler(guider, comfy.samplers.sampler_object(DRAFT_SAMPLER), sigmas, rows).float()

    def _sample(self, alive: list[int]) -> list[int]:
        """The whole schedule for the candidates that go on, with cuts on the way. Returns those that are left."""
        plan = self.state.plan
        networks = [network for encoder in host_encoders(self.state.reward) for network in encoder.patchers]
        guider = copy_of(self.guider, None)
        rows = self._rows(looks=bool(plan.cuts))
        if plan.cuts:  # the judge is loaded beside the model, for nothing may be moved while it samples
            guider.model_patcher.set_additional_models("latent_clip_search", networks)
        if len(alive) < plan.candidates:
            rows.keep(alive, guider.model_patcher.model.process_latent_in(self.samples))
        cuts = _DueCuts(plan)
        last_x0 = None

        def on_step(_step: int, x0: Tensor, x: Tensor) -> None:
            nonlocal last_x0
            last_x0 = x0
            for cut in cuts.due(rows.predictions):
                if len(rows.alive) > cut.keep:  # a person may have kept fewer before
                    self._cut(cut, rows, x0, guider.model_patcher.model)

        samples = self._run_sampler(guider, self.sampler, self.sigmas, rows, on_step)
        if cuts.left:
            raise ValueError(_not_cut(self.sampler, guider.model_patcher))
        self.samples[rows.alive] = samples[rows.alive].to(self.samples)
        self.final = self.samples
        if float(self.sigmas[-1]) > 0 and last_x0 is not None:  # noise is left, which no judge can read
            self.final = guider.model_patcher.model.process_latent_out(last_x0.float()).to(self.samples)
        return rows.alive

    def _cut(self, cut: Cut, rows: Rows, x0: Tensor, model) -> None:
        """Look at the prediction (B, C, H, W), in the model's space, and go on with the best of it."""
        raw = model.process_latent_out(x0.float())
        self.samples[rows.alive] = raw[rows.alive].to(self.samples)
        name = f"{100 * cut.step / len(self.state.plan.evaluations):.0f}%"
        level = noise_level(model, float(self.sigmas[cut.step - 1]))
        kept = self._look(name, cut.step, rows.alive, raw, cut.keep, level, loaded=True)
        rows.keep(kept, x0)

    def _finish(self, alive: list[int]) -> None:
        """The last look: who wins, and in which order."""
        one, features = self._judge("final", len(self.state.plan.evaluations), alive, self.final)
        scores = torch.tensor([one.scores[item] for item in alive])
        chosen = choose(scores, min(self.limit, len(alive)), features, self.state.settings.variety)
        one.kept = [alive[place] for place in chosen]
        self.state.winners = list(one.kept)

    def _look(
        self, name: str, step: int, alive: list[int], raw: Tensor, keep: int, level: float | None = None, loaded=False
    ) -> list[int]:
        """Judge the candidates that are alive, and choose: the reward, or the person who is asked."""
        settings = self.state.settings
        one, features = self._judge(name, step, alive, raw, level, loaded)
        judged = [item for item in alive if not math.isnan(one.scores[item])]
        scores = torch.tensor([one.scores[item] for item in alive])
        proposed = [alive[place] for place in choose(scores, min(keep, len(alive)), features, settings.variety)]
        chosen = None
        if settings.chooses != "reward":
            shown = [] if settings.chooses == "me" else proposed
            chosen = self.live.ask(len(self.state.rounds) - 1, judged, shown, settings.time_out)
        self.limit = self.state.plan.keep if chosen is None else len(chosen)
        one.kept = proposed if chosen is None else sorted(chosen, key=lambda item: -one.scores[item])
        self.live.looked()
        return one.kept

    def _judge(
        self, name: str, step: int, alive: list[int], raw: Tensor, level: float | None = None, loaded: bool = False
    ) -> tuple[Round, Tensor]:
        """Score what is finite of the candidates that are alive, and show it. Features: (alive, D), zeros where none."""
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
                f"Got no candidate that could be judged at {name!r} (step {step}): every one of {len(alive)} is NaN or infinite, or its score "
                "is. The model or the judge overflowed: try another dtype of the model, a lower cfg, or another scheduler."
            )
        if (lost := int(scores.isnan().sum())) > 0:
            LOGGER.warning(
                "Search Best Images: %d of %d candidates could not be judged and were dropped.", lost, len(alive)
            )
        return one, features

    def _picture(self, ids: list[int], raw_latents: Tensor) -> None:
        pictures = thumbnails(raw_latents.float(), self.state.reward.space, self.previewer, self.side)
        self.state.thumbnails = {**self.state.thumbnails, **dict(zip(ids, pictures))}

    def _rows(self, looks: bool = False) -> Rows:
        encoders, shape = host_encoders(self.state.reward), self.latent["samples"].shape
        bytes_of_judge = max(encoder.memory_per_item(shape) for encoder in encoders) if looks else 0
        return Rows(self.state.plan.candidates, self.state.settings.images_at_once, bytes_of_judge)

    def _run_sampler(self, guider, sampler, sigmas: Tensor, rows: Rows, on_step=None) -> Tensor:
        """Raw latents (B, C, H, W) of the whole batch; of rows that were dropped, nothing of use."""
        rows.hang_on(guider.model_patcher)
        rows.tell(guider.model_options)
        before, plan = self.state.spent, self.state.plan
        show = latent_preview.prepare_callback(guider.model_patcher, plan.cost)

        def callback(step: int, x0: Tensor, x: Tensor, _total: int) -> None:
            self.state.spent = before + rows.evaluations
            row = rows.alive[0]
            show(min(self.state.spent, plan.cost) - 1, x0[row : row + 1], x, plan.cost)
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
        self.state.spent = before + rows.evaluations
        return samples


def _not_cut(sampler, patcher) -> str:
    if patches := patches_of(patcher):
        return (
            "Got a model that answered steps without being asked for a prediction, so that nothing was cut. On it: "
            f"{', '.join(patches)}. Bypass what skips steps, or look at drafts."
        )
    return (
        f"Got the sampler {sampler_name(sampler) or type(sampler).__name__}, which did not say where it was, so that nothing was cut. "
        "Look at drafts instead, or use a sampler of ComfyUI's own."
    )


class _DueCuts:
    """Cuts of a plan, each due once the sampler has made the first prediction of its step."""

    def __init__(self, plan: Plan):
        self.left = [(sum(plan.evaluations[: cut.step - 1]) + 1, cut) for cut in plan.cuts]

    def due(self, predictions: int) -> Sequence[Cut]:
        due = [cut for at, cut in self.left if at <= predictions]
        self.left = self.left[len(due) :]
        return due[-1:]  # of several at once, the last
