"""Make the Shapes World weights: ./dev train.

Stages: autoencoder, latents of the corpus, Latent-CLIP, pixel CLIP, diffusion teacher, distilled student, decoder again,
the Latent-CLIP's noise level. Each is seeded, is kept in .cache/shapes_world/ and goes on where it stopped. Delete that folder to start afresh.
"""

from __future__ import annotations

import argparse
import time

import torch

from ..models.shapes_world import save_weights
from .captions import COLOURS, KINDS, RELATIONS
from .corpus import Corpus, sample_corpus, tokenize
from .training import CACHE

SCENES = 24_000


def used_ids() -> torch.Tensor:
    """Sorted token ids of every word that a caption can hold, with start and end of text."""
    words = " ".join(("a an and", *COLOURS, *KINDS, *RELATIONS)).split()
    ids = tokenize(words).unique()
    return ids[ids > 0]


def main() -> None:
    """Run every stage that is not finished and write demo/weights/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    use_cpu()
    from .train_clip import LATENT_CONFIG, PIXEL_CONFIG, train_latent_clip, train_pixel_clip
    from .train_generator import train_generator
    from .train_noise_level import train_noise_level
    from .train_vae import encode_scenes, finish_decoder, train_vae

    began = time.monotonic()

    def done(stage: str) -> None:
        print(f"== {stage} after {(time.monotonic() - began) / 60:.1f} minutes", flush=True)

    ids = used_ids()
    vae = train_vae()
    done("autoencoder")
    scenes = sample_corpus("corpus", SCENES)
    corpus = Corpus(scenes, encode_scenes(vae, "corpus", scenes))
    done("latents")
    save_weights("latent_clip", train_latent_clip(corpus).state_dict(), ids, LATENT_CONFIG)
    done("Latent-CLIP")
    save_weights("pixel_clip", train_pixel_clip(corpus).state_dict(), ids, PIXEL_CONFIG)
    done("pixel CLIP")
    generator = train_generator(corpus)
    weights = generator.state_dict()
    del weights["text.text_projection.weight"]  # no model reads the pooled text, so no loss reached it
    save_weights("generator", weights, ids)
    done("generator")
    save_weights("vae", finish_decoder(vae, generator, corpus).state_dict(), ids)
    done("decoder")
    train_noise_level()
    done("noise level")
    print(f"checkpoints of the stages are in {CACHE}")


def use_cpu() -> None:
    """Tell the host, before it looks for a GPU, that this runs on the CPU."""
    from comfy.cli_args import args

    args.cpu = True


if __name__ == "__main__":
    main()
