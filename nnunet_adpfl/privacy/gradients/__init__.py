"""Gradient engines: from units' patches to the sum of their clipped gradients."""
