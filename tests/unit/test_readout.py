"""The cell that a readout is given is the one at the centre of the shape, and the readout finds what is linear."""

import torch

from latent_clip.demo.corpus import sample_corpus
from latent_clip.demo.scenes import render
from latent_clip.studies.readout import cells_of, fit_readout


def test_the_cell_is_the_one_at_the_centre_of_the_shape():
    scenes = sample_corpus("cells", 8, single=0.5)
    shapes = [shape for scene in scenes for shape in scene.shapes]
    pixels = cells_of(render(scenes), scenes)
    assert pixels.shape == (len(shapes), 3 * 8 * 8)
    painted = pixels.unflatten(1, (3, 64)) - torch.tensor([shape.rgb for shape in shapes])[..., None]
    assert (painted.abs().amax(1) < 1e-4).any(1).all()  # some pixel of the cell has the shape's own colour
    places = torch.arange(64.0).view(1, 1, 8, 8).expand(8, 1, 8, 8)
    expected = [[int(shape.y) // 8 * 8 + int(shape.x) // 8] for shape in shapes]
    assert cells_of(places, scenes).tolist() == expected


def test_a_linear_rule_is_found_and_another_is_not():
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(1500, 4, generator=generator) * torch.tensor([1.0, 7.0, 1.0, 1.0]) + 3
    linear, crossed = (cells[:, 1] > 3).long(), ((cells[:, 0] > 3) ^ (cells[:, 1] > 3)).long()
    for labels, least, most in ((linear, 0.97, 1.0), (crossed, 0.35, 0.65)):
        right = fit_readout(cells[:1000], labels[:1000], 2)(cells[1000:]) == labels[1000:]
        assert least <= right.float().mean() <= most
