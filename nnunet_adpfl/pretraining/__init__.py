"""A public start for a planned network: trained on labelled images that a program draws, without any patient's data."""
