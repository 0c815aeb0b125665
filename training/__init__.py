"""Making a Latent-CLIP: pictures → shards of latents → a tower that reads them → one file with its card.

Pieces of the field where there are any: open_clip's losses and schedule, webdataset's reader, torch's DistributedDataParallel, Ray
Data. Imports methods and models, never the host: a caller that has a VAE passes a function that encodes.
"""
