"""Latent-CLIP for ComfyUI: judge and steer images while they are still latents."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    """Called by the host; everything is imported here, so that loading the pack costs nothing before."""
    from .host.folders import register_folders
    from .host.installation import is_first_copy
    from .host.requirements import warn_of_missing_requirements
    from .host.routes import register_routes
    from .nodes import LatentCLIPExtension

    if not is_first_copy():
        return LatentCLIPExtension(nodes=[])
    warn_of_missing_requirements()
    register_folders()
    register_routes()
    return LatentCLIPExtension()
