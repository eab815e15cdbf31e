"""The trainers that stock nnU-Net finds, and what they share with the federation: loader, private steps, checkpoints."""
