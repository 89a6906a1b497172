"""From histograms to corrections: mass models, batched fits, A/e/M, resolution, combination."""
