"""Everything that touches a private or moving name of nnU-Net, one file per area; `tests/nnunet_compat` is its contract."""
