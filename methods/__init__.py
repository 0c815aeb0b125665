"""Computations on latents. Torch only, no ComfyUI: tensors and callables in, tensors out."""
