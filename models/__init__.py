"""Models and files: Latent-CLIP, its checkpoints, latent spaces. Torch only, no ComfyUI."""
