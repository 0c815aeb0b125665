"""What we load: Latent-CLIP, its checkpoints, latent spaces. Torch only, no ComfyUI."""
