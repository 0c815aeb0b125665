"""Side-by-side measurements, printed as ratios; results of runs in results/."""
