"""Latent-CLIP for ComfyUI: score and steer images while they are still latents. Also a library, see docs/library.md."""

__version__ = "0.2.0"
WEB_DIRECTORY = "./js"
LIBRARY = (
    "LATENT_SPACES", "RenoSettings", "avoid_reward", "combine", "latent_reward", "load", "optimize_noise", "text_reward",
)  # fmt: skip


def __getattr__(name: str):
    """Import a name of the library when it is first used: ComfyUI loads the pack without torch."""
    if name not in LIBRARY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .methods import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *LIBRARY])


async def comfy_entrypoint():
    """Called by the host; everything is imported here, so that loading the pack costs nothing before."""
    from .host.front_end.installation import is_first_copy
    from .host.front_end.requirements import warn_of_missing_requirements
    from .host.front_end.routes import register_routes
    from .host.scorers.folders import register_folders
    from .nodes import LatentCLIPExtension

    if not is_first_copy():
        return LatentCLIPExtension(nodes=[])
    warn_of_missing_requirements()
    register_folders()
    register_routes()
    return LatentCLIPExtension()
