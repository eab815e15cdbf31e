"""Labelled images drawn by a program, for any plan: random shapes, contrasts, textures. No patient has a part in them."""
