"""Arguments that the caller fixes: the Latent-CLIPs of the gates and their settings; and the part of a request beside its prompt."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from .lists import LOADERS
from .prompt import Refused, short

TYPED = "typed below"
PREVIEWS_OFF = ("", "none", "default")
"""Values of extra_data.preview_method that keep the server's own `--preview-method`, or switch previews off."""


@dataclass(frozen=True)
class GateModel:
    """A Latent-CLIP that a gate may check with, and the VAEs that may decode what it let through.

    Attributes:
        loader: class of the node that loads it: LatentCLIPLoader, LatentCLIPPixelLoader or LatentCLIPShapesWorld.
        inputs: inputs that the loader must have: `file`, and for LatentCLIPPixelLoader also `quick_gelu`.
        vaes: names of the files (VAE or checkpoint) whose VAE makes the latents that the Latent-CLIP reads. Another VAE shows another
            picture than the one that was checked. LatentCLIPPixelLoader needs none: it decodes itself, and the VAE that decodes
            behind the gate must be the one that is wired to it. For LatentCLIPShapesWorld: its own class name.
    """

    loader: str = "LatentCLIPLoader"
    inputs: Mapping[str, object] = field(default_factory=dict)
    vaes: Collection[str] = ()


def check_arguments(models: Sequence[GateModel], settings: Mapping[str, object], *allowed: Collection[str]) -> None:
    """Refuse, as a ValueError, what the caller forgot to fix."""
    if any(isinstance(names, str) for names in allowed):
        raise ValueError("allowed_before and allowed_after are collections of class names, got a text.")
    needed = ["concepts", "categories", "thresholds", *(["typed"] if settings.get("concepts") == TYPED else [])]
    if missing := [key for key in needed if key not in settings]:
        raise ValueError(f"settings lacks {', '.join(missing)}. A gate that the client may set is no gate.")
    if not models:
        raise ValueError("models is empty, expected at least one GateModel.")
    for model in models:
        if model.loader not in LOADERS:
            raise ValueError(f"GateModel has the loader {model.loader!r}, expected one of {', '.join(LOADERS)}.")
        if missing := [key for key in LOADERS[model.loader] if key not in model.inputs]:
            raise ValueError(
                f"GateModel of {model.loader} lacks the inputs {', '.join(missing)}: a client could choose them."
            )


def check_extra_data(extra_data: object) -> None:
    """Refuse a request that switches live previews on."""
    if extra_data is not None and not isinstance(extra_data, Mapping):
        raise Refused(f"extra_data is {short(extra_data)}, expected an object.")
    method = (extra_data or {}).get("preview_method")
    if method is not None and (not isinstance(method, str) or method not in PREVIEWS_OFF):
        raise Refused(
            f"extra_data switches live previews on (preview_method {short(method)}), which show images before any gate. Send 'none', or leave it out."
        )
