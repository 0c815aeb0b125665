"""The host's part of the commands: calibrate, embed, zero-shot, finetune-vae."""
