"""The only room that touches ComfyUI: devices, memory, files, interruption, gradients inside the executor."""
