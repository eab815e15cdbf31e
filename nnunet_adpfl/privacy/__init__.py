"""The privacy core: sampling, clipping, noise, accounting, and the one place where they meet (`mechanism`).

Nothing here knows nnU-Net or federations. To audit the privacy claim, read `mechanism` and the leaves it joins,
then `ledger` (what is written before anything is released) and `gradients` (how a patient's gradient is bounded).
"""
