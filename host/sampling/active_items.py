"""Sample a full batch but evaluate the model only for the active items, in chunks.

The sampler knows nothing of it: it keeps its history, its noise and its hooks for the whole batch. Only where the host would
run the network are items left out; a dropped item keeps the prediction that it was dropped with.

`ActiveItems` reach other wrappers of the same sampling through `transformer_options[KEY]`: guidance and safety, which see
whole batches, ask `active_items` there which items still count. `ActiveItems.attach` is the only writer.
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

KEY = "latent_clip_active_items"
LOGGER = logging.getLogger(__name__)
SLACK = 1.5  # the host joins conditions where so many times its own estimate is free


def active_items(model_options: dict, size: int) -> range | list[int]:
    """Active items of a batch of this size: all, except in a sampling with `ActiveItems` attached."""
    active = model_options.get("transformer_options", {}).get(KEY)
    return active.alive if active is not None and active.size == size else range(size)


class ActiveItems:
    """Active items of a batch during one sampling.

    Attributes:
        size: of the batch. alive: items that the model is evaluated for, in order.
        at_once: most items in one evaluation; 0: as many as the memory beside the model holds.
        scorer_bytes: to keep free for an encoder that scores in the middle of the sampling.
        divisible: False where all active items must be in one evaluation.
        predictions: made so far. evaluations: one for each item of each prediction.
    """

    def __init__(self, size: int, at_once: int = 0, scorer_bytes: int = 0, divisible: bool = True):
        self.size, self.scorer_bytes, self.divisible = size, scorer_bytes, divisible
        self.at_once = at_once if divisible else size
        self.alive = [*range(size)]
        self.evaluations = self.predictions = 0
        self._held: Tensor | None = None
        self._chunk = self.at_once or size
        self._conds_of = ItemsOfConds()

    def keep(self, items: list[int], predictions: Tensor) -> None:
        """Evaluate only `items` from now on; the others keep their `predictions` (B, C, H, W), in the model's space."""
        dropped = [item for item in self.alive if item not in items]
        held = torch.nan_to_num(predictions.detach(), posinf=0.0, neginf=0.0)
        if self._held is None:
            self._held = held.clone()
        else:
            self._held[dropped] = held[dropped].to(self._held)
        self.alive = sorted(items)
        self._conds_of.forget()

    def attach(self, guider) -> None:
        """Wrap the model of a copied guider, inside the wrappers of all other nodes, and let `active_items` find this."""
        patcher = guider.model_patcher
        patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, self.reserve)
        patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.count)
        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self.evaluate)
        guider.model_options.setdefault("transformer_options", {})[KEY] = self

    def reserve(self, executor, model, noise_shape, conds: dict, *args, **kwargs):
        """Wrap the host's prepare_sampling: reserve room for one chunk instead of the whole batch."""
        shape = [1, *noise_shape[1:]]
        factor = prompt_factor(model.model, tuple(shape), conds)
        if not self.at_once:
            per_item = SLACK * factor * model.model.memory_required(shape)
            room = room_beside(model, conds, model.load_device) - self.scorer_bytes
            self._chunk = max(1, min(self.size, int(room / per_item)))
        more = max(0, noise_shape[0] - self.size)  # for what guides the model
        images = math.ceil((self._chunk + more) * factor) + images_of(self.scorer_bytes, model, tuple(shape))
        return executor(model, (images, *shape[1:]), conds, *args, **kwargs)

    def count(self, executor, x: Tensor, timestep: Tensor, model_options: dict, seed=None) -> Tensor:
        """Wrap one prediction (the host's PREDICT_NOISE) and count it."""
        self.predictions += 1
        self.evaluations += len(self.alive) if len(x) == self.size else len(x)
        return executor(x, timestep, model_options, seed)

    def evaluate(
        self, executor, model, conds: list, x_in: Tensor, timestep: Tensor, model_options: dict
    ) -> list[Tensor]:
        """Wrap the network for all conditions (the host's CALC_COND_BATCH): evaluate the active items in chunks."""
        whole = len(x_in) == self.size  # else guidance evaluates items of its own choice
        alive = self.alive if whole else [*range(len(x_in))]
        if len(alive) == len(x_in) <= self._chunk:
            results = self._try(executor, model, conds, x_in, timestep, model_options, len(x_in) == 1)
            if results is not None:
                return results
        held = self._held.to(x_in) if whole and self._held is not None else torch.zeros_like(x_in)
        outs, done = [held.clone() for _ in conds], 0
        while done < len(alive):
            mm.throw_exception_if_processing_interrupted()
            items = alive[done : done + self._chunk_size(len(alive) - done)]
            part = self._conds_of(conds, items)
            results = self._try(executor, model, part, x_in[items], timestep[items], model_options, len(items) == 1)
            if results is None:
                continue
            for out, result in zip(outs, results):
                out[items] = result.to(out)
            done += len(items)
        return outs

    def _chunk_size(self, left: int) -> int:
        """Number of items in the next chunk of the `left` ones: chunks of equal size."""
        return math.ceil(left / math.ceil(left / self._chunk))

    def _try(self, executor, model, conds, x, timestep, model_options, last: bool) -> list[Tensor] | None:
        """Return the network's answer; None if memory ran out and fewer items are to be tried."""
        try:
            return executor(model, conds, x, timestep, model_options)
        except (mm.OOM_EXCEPTION, RuntimeError) as error:
            if last or not self.divisible or not is_oom(error):
                raise
        self._chunk = max(1, len(x) // 2)
        LOGGER.warning("Out of memory with %d images of a batch at once; going on with %d.", len(x), self._chunk)
        mm.soft_empty_cache()  # outside the handler, whose traceback keeps the activations alive
        return None
