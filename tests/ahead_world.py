"""Shapes World in the test process under a Safety Guidance that looks ahead."""

import importlib

import torch

from .guided_world import World

CALIBRATED = "0.44"  # of shapes-world-stars


class AheadWorld(World):
    """Shapes World with a Safety Guidance that looks ahead."""

    def __init__(self, host_env):
        super().__init__(host_env)

        def module(name: str):
            return importlib.import_module(f"{host_env.pack.__name__}.{name}")

        self.look_ahead, self.looks, self.gate = map(
            module, ("host.safety.look_ahead", "host.safety.verdicts", "host.safety.gate")
        )
        self.active_items, self.pixel_clip = module("host.sampling.active_items"), module("host.scorers.pixel_clip")
        with torch.inference_mode():
            self.shipped = module("models.concepts").shipped_concepts("shapes-world-stars")

    def looking(
        self, draft=0.0, late="ignore", threshold=1000.0, steps=4, instead="a green circle", model=None, drafter=None, looks=None,
        start=0.0, end=1.0, second=(),
    ):  # fmt: skip
        """A MODEL that looks ahead: suspects drafts from `draft` log-odds on, and predictions from `threshold` on."""
        if isinstance(draft, str):
            concepts = self.concepts.directions(self.clip, self.shipped.with_thresholds(draft))
        else:
            concepts = self.concepts.directions(self.clip, self.parsed(draft))
        judges = (self.look_ahead.DraftScorer(self.encoder, concepts), *second)
        look = self.look_ahead.LookAhead(judges, steps, drafter)
        window = self.host.Window(start, end)
        prompt = None if instead is None else self.condition(instead)
        return self.host.redirect_model(
            model or self.model, self.watch(threshold), prompt, window, look, late, looks or self.looks.Verdicts()
        )

    def evaluations(self, monkeypatch) -> list[int]:
        """A list that fills with the rows of every call of the network."""
        rows: list[int] = []
        real = self.model.model.apply_model

        def apply(x, *args, **kwargs):
            rows.append(len(x))
            return real(x, *args, **kwargs)

        monkeypatch.setattr(self.model.model, "apply_model", apply)
        return rows
