"""One sampling of a whole batch whose model is asked about some of its rows only, a few at once.

The sampler knows nothing of it: it keeps its history, its noise and its hooks for the whole batch. Only where the host would
run the network are rows left out; a row that was dropped gets the prediction back that it was dropped with.
"""

import logging
import math

import comfy.model_management as mm
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..memory.oom import is_oom
from .conditioning import ItemsOfConds
from .reservation import images_of, prompt_factor, room_beside

KEY = "latent_clip_rows"
LOGGER = logging.getLogger(__name__)
SLACK = 1.5  # the host joins conditions where so many times its own estimate is free


def active_items(model_options: dict, size: int) -> range | list[int]:
    """Rows of a batch of this size that go on: all, but in a sampling that `Rows` hang on."""
    rows = model_options.get("transformer_options", {}).get(KEY)
    return rows.alive if rows is not None and rows.size == size else range(size)


class Rows:
    """Which rows of a batch go on.

    Attributes:
        size: of the batch. alive: rows that the model is asked about, in order.
        at_once: most rows in one evaluation; 0: as many as the memory beside the model holds.
        judge_bytes: to keep free for a judge that looks in the middle of the sampling.
        divisible: False where all rows that go on must be in one evaluation.
        predictions: made so far. evaluations: one for each row of each.
    """

    def __init__(self, size: int, at_once: int = 0, judge_bytes: int = 0, divisible: bool = True):
        self.size, self.judge_bytes, self.divisible = size, judge_bytes, divisible
        self.at_once = at_once if divisible else size
        self.alive = [*range(size)]
        self.evaluations = self.predictions = 0
        self._held: Tensor | None = None
        self._chunk = self.at_once or size
        self._rows_of = ItemsOfConds()

    def keep(self, rows: list[int], predictions: Tensor) -> None:
        """Ask about `rows` only from now on; the others keep their `predictions` (B, C, H, W), in the model's space."""
        dropped = [row for row in self.alive if row not in rows]
        held = torch.nan_to_num(predictions.detach(), posinf=0.0, neginf=0.0)
        if self._held is None:
            self._held = held.clone()
        else:
            self._held[dropped] = held[dropped].to(self._held)
        self.alive = sorted(rows)
        self._rows_of.forget()

    def hang_on(self, patcher) -> None:
        """Put the wrappers on a MODEL, which must be a copy of the caller's own: inside those of all other nodes."""
        patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, self.reserve)
        patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.count)
        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self.evaluate)

    def tell(self, model_options: dict) -> None:
        """Let `active_items` find these rows."""
        model_options.setdefault("transformer_options", {})[KEY] = self

    def reserve(self, executor, model, noise_shape, conds: dict, *args, **kwargs):
        """Wrapper of the host's prepare_sampling: room for the rows of one evaluation, and not for the whole batch."""
        shape = [1, *noise_shape[1:]]
        factor = prompt_factor(model.model, tuple(shape), conds)
        if not self.at_once:
            per_row = SLACK * factor * model.model.memory_required(shape)
            room = room_beside(model, conds, model.load_device) - self.judge_bytes
            self._chunk = max(1, min(self.size, int(room / per_row)))
        more = max(0, noise_shape[0] - self.size)  # for what guides the model
        images = math.ceil((self._chunk + more) * factor) + images_of(self.judge_bytes, model, tuple(shape))
        return executor(model, (images, *shape[1:]), conds, *args, **kwargs)

    def count(self, executor, x: Tensor, timestep: Tensor, model_options: dict, seed=None) -> Tensor:
        """Wrapper of one prediction (the host's PREDICT_NOISE)."""
        self.predictions += 1
        self.evaluations += len(self.alive) if len(x) == self.size else len(x)
        return executor(x, timestep, model_options, seed)

    def evaluate(
        self, executor, model, conds: list, x_in: Tensor, timestep: Tensor, model_options: dict
    ) -> list[Tensor]:
        """Wrapper of the network for all conditions (the host's CALC_COND_BATCH)."""
        whole = len(x_in) == self.size  # else what guides the model asks about rows of its own choice
        alive = self.alive if whole else [*range(len(x_in))]
        if len(alive) == len(x_in) <= self._chunk:
            results = self._try(executor, model, conds, x_in, timestep, model_options, len(x_in) == 1)
            if results is not None:
                return results
        held = self._held.to(x_in) if whole and self._held is not None else torch.zeros_like(x_in)
        outs, done = [held.clone() for _ in conds], 0
        while done < len(alive):
            mm.throw_exception_if_processing_interrupted()
            rows = alive[done : done + self._next(len(alive) - done)]
            part = self._rows_of(conds, rows)
            results = self._try(executor, model, part, x_in[rows], timestep[rows], model_options, len(rows) == 1)
            if results is None:
                continue
            for out, result in zip(outs, results):
                out[rows] = result.to(out)
            done += len(rows)
        return outs

    def _next(self, left: int) -> int:
        """How many rows to take of those that are left: parts of equal size."""
        return math.ceil(left / math.ceil(left / self._chunk))

    def _try(self, executor, model, conds, x, timestep, model_options, last: bool) -> list[Tensor] | None:
        """The network's answer; None where memory ran out and fewer rows are to be tried."""
        try:
            return executor(model, conds, x, timestep, model_options)
        except (mm.OOM_EXCEPTION, RuntimeError) as error:
            if last or not self.divisible or not is_oom(error):
                raise
        self._chunk = max(1, len(x) // 2)
        LOGGER.warning("Out of memory with %d images of a batch at once; going on with %d.", len(x), self._chunk)
        mm.soft_empty_cache()  # outside the handler, whose traceback keeps the activations alive
        return None
