"""Latents of any size on the tower's grid."""

import pytest
import torch
import torch.nn.functional as F

from latent_clip.models.fit import FITS, TILE_STEP, fit_latents, safety_fit, safety_windows

GRID = 16
# height, width: square, portrait, landscape; larger, smaller, odd, extreme
SIZES = [(16, 16), (32, 32), (48, 48), (8, 8), (24, 16), (16, 24), (33, 47), (20, 12), (7, 5), (16, 17), (12, 90), (64, 8)]  # fmt: skip
every_fit = pytest.mark.parametrize("fit", FITS)
every_size = pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)


def latents(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(0))


def coordinates(height: int, width: int) -> torch.Tensor:
    """Channel 0 holds the row, channel 1 the column of every cell: (1, 2, H, W)."""
    rows, columns = torch.arange(height * 1.0), torch.arange(width * 1.0)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


def slopes(view: torch.Tensor) -> tuple[float, float]:
    """Cells of the original per cell of a view (2, H, W) of `coordinates`: down, across. The rim may be clamped."""
    inner = view[:, 4:-4, 4:-4]
    return inner[0].diff(dim=0).mean().item(), inner[1].diff(dim=1).mean().item()


@every_fit
def test_identity_at_grid_size(fit):
    x = latents(GRID, GRID)
    views = fit_latents(x, GRID, fit)
    assert views.shape == (2, 1, 4, GRID, GRID)
    assert torch.equal(views[:, 0], x)


@every_fit
@every_size
def test_every_size_gives_grids(fit, size):
    views = fit_latents(latents(*size), GRID, fit)
    assert views.shape[2:] == (4, GRID, GRID)
    assert views.isfinite().all()
    if fit != "tiles" or size[0] == size[1]:
        assert views.shape[:2] == (2, 1)


@every_fit
@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_larger_squares_are_area_averaged(fit, ratio):
    x = latents(ratio * GRID, ratio * GRID)
    torch.testing.assert_close(fit_latents(x, GRID, fit)[:, 0], F.avg_pool2d(x, ratio))


def test_smaller_squares_are_enlarged_bilinearly():
    x = latents(8, 8)
    expected = F.interpolate(x, (GRID, GRID), mode="bilinear", align_corners=False)
    torch.testing.assert_close(fit_latents(x, GRID)[:, 0], expected)


def test_side_that_shrinks_is_averaged_though_the_other_grows():
    x = torch.zeros(1, 1, 4 * GRID, GRID // 2)
    x[:, :, ::4] = 4  # a sampler without averaging would step over these rows, or see nothing else
    torch.testing.assert_close(fit_latents(x, GRID, "squash"), torch.ones(1, 1, 1, GRID, GRID))


@every_fit
@every_size
def test_flat_latent_stays_flat(fit, size):
    views = fit_latents(torch.full((1, 1, *size), 7.0), GRID, fit)
    torch.testing.assert_close(views, torch.full_like(views, 7.0))


@pytest.mark.parametrize("size", [(GRID, width) for width in range(GRID, 8 * GRID, 5)] + [(40 * GRID, GRID)], ids=str)
def test_tiles_see_every_cell_and_overlap_by_a_quarter(size):
    views = fit_latents(coordinates(*size), GRID, "tiles")[0]
    long = 0 if size[0] > size[1] else 1
    seen = views[:, long].flatten(1)
    assert set(seen.flatten().tolist()) == set(range(max(size)))
    starts = seen.amin(dim=1)
    assert starts.diff().le(GRID * TILE_STEP).all()
    assert starts.tolist() == sorted(starts.tolist())
    assert (seen.amax(dim=1) - starts == GRID - 1).all()


@pytest.mark.parametrize("fit", ["tiles", "crop"])
@pytest.mark.parametrize("size", [(48, 96), (100, 60), (32, 128)], ids=str)
def test_tiles_and_crop_keep_the_aspect_ratio(fit, size):
    for view in fit_latents(coordinates(*size), GRID, fit)[0]:
        down, across = slopes(view)
        assert down == pytest.approx(across, rel=0.05)
        assert down == pytest.approx(min(size) / GRID, rel=0.05)


def test_squash_gives_the_aspect_ratio_up():
    down, across = slopes(fit_latents(coordinates(32, 96), GRID, "squash")[0, 0])
    assert (down, across) == pytest.approx((2, 6))


@pytest.mark.parametrize("size", [(GRID, GRID + 8), (GRID + 8, GRID)], ids=str)
def test_crop_takes_the_centre(size):
    x = latents(*size)
    assert torch.equal(fit_latents(x, GRID, "crop")[:, 0], x[:, :, (size[0] - GRID) // 2 :, (size[1] - GRID) // 2 :][..., :GRID, :GRID])  # fmt: skip


@every_fit
def test_portrait_is_landscape_turned(fit):
    x = latents(24, 40)
    turned = fit_latents(x.mT, GRID, fit)
    torch.testing.assert_close(fit_latents(x, GRID, fit), turned.mT)


@every_fit
@pytest.mark.parametrize("size", [(4, 4), (6, 4), (4, 9), (3, 3), (5, 7), (2, 6), (8, 3)], ids=str)
def test_gradients_are_exact(fit, size):
    x = latents(*size, batch=1)[:, :1].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fit_latents(x, 4, fit), x)


@pytest.mark.parametrize("fit", ["tiles", "squash"])
@every_size
def test_every_cell_gets_a_gradient(fit, size):
    x = latents(*size).requires_grad_()
    fit_latents(x, GRID, fit).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad > 0).all()


def test_unknown_fit_is_named():
    with pytest.raises(ValueError, match="Got fit 'stretch', expected one of tiles, crop, squash"):
        fit_latents(latents(8, 8), GRID, "stretch")


# What a judge of safety sees besides


@every_fit
@every_size
def test_no_cell_stays_unseen(fit, size):
    x = latents(*size).requires_grad_()
    windows = torch.cat([fit_latents(x, GRID, fit), safety_windows(x, GRID, fit)], dim=1)
    assert windows.shape[2:] == (4, GRID, GRID)
    (gradient,) = torch.autograd.grad(windows.sum(), x)
    assert (gradient > 0).all()


@every_fit
@pytest.mark.parametrize(("size", "count"), [((16, 16), 0), ((8, 20), 0), ((32, 32), 9), ((64, 64), 25), ((24, 40), 6)])
def test_closer_look_reduces_nothing(fit, size, count):
    x = coordinates(*size)
    plain = safety_windows(x, GRID, fit).shape[1]
    windows = safety_windows(x, GRID, fit, closer=True)[0, plain:]
    assert len(windows) == count
    for window in windows:
        assert slopes(window) == (1, 1)
    if count:
        seen = {(int(a), int(b)) for w in windows for a, b in w.flatten(1).T.tolist()}
        assert len(seen) == size[0] * size[1]


@pytest.mark.parametrize(("fit", "effective"), [("tiles", "tiles"), ("crop", "tiles"), ("squash", "squash")])
def test_fit_of_a_judge_of_safety(fit, effective):
    assert safety_fit(fit) == effective
