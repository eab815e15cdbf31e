"""Parameters of a site between the usual ones and those of its profile, as far apart as asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from nnunet_adpfl.dataset_conversion.synthetic.randomness import generator_for

JITTER = 0.15  # of a field's range over the profiles: the same site looks a little different under another seed
Site = TypeVar("Site")


def mixed_site(
    usual: Site, profiles: Mapping[str, Site], name: str, heterogeneity: float, seed: int, *, shares: str | None = None
) -> Site:
    """Parameters of the site ``name``.

    Args:
        usual: what all sites are like at heterogeneity 0: a dataclass whose fields are tuples of numbers, among them ``quantity``.
        profiles: name -> parameters at heterogeneity 1; a name that is not among them gets some between them.
        shares: a field whose numbers have to add up to 1.
    """
    generator = generator_for(seed, "site", name)
    known: list[dict[str, Any]] = [asdict(profile) for profile in profiles.values()]  # type: ignore[call-overload]
    own: dict[str, Any] | None = asdict(profiles[name]) if name in profiles else None  # type: ignore[call-overload]
    mixed: dict[str, tuple[float, ...]] = {}
    for field, middle in asdict(usual).items():  # type: ignore[call-overload]
        of_all = np.array([profile[field] for profile in known])
        low, high = of_all.min(axis=0), of_all.max(axis=0)
        jitter = JITTER * (high - low) * generator.uniform(-1, 1, len(low))
        target = generator.uniform(low, high) if own is None else np.clip(own[field] + jitter, low, high)
        mixed[field] = tuple((np.array(middle) + heterogeneity * (target - np.array(middle))).tolist())
    # Geometric, so that half of the heterogeneity is the root of the real ratios of the sites' sizes.
    quantity = float(np.mean([profile["quantity"][0] for profile in known])) if own is None else own["quantity"][0]
    mixed["quantity"] = (quantity**heterogeneity,)
    if shares is not None:
        parts = np.array(mixed[shares])
        mixed[shares] = tuple((parts / parts.sum()).tolist())
    return type(usual)(**mixed)
