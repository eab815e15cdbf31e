"""A quick Dice of a run's model after every round, for learning curves: on a few held-out cases, on the network's own grid.

It looks at held-out patients again and again. That is an experiment, for the one who compares methods: no training may
follow it, and it may be released as little as any other score on private patients.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.evaluation.classes import scored_classes
from nnunet_adpfl.evaluation.metrics import dice
from nnunet_adpfl.nnunet_compat.prediction import CasePredictor, TrainedModel


class RoundDice:
    """Mean Dice over some held-out cases and all classes.

    Args:
        model: any weights of the network; they are replaced.
        data_folder: preprocessed cases.
        cases: held-out cases.
        site_of: case -> site, for models with layers of each site's own.
    """

    def __init__(
        self, model: TrainedModel, data_folder: Path, cases: Sequence[str], site_of: Mapping[str, str], device: torch.device
    ) -> None:
        self._predictor = CasePredictor(model, data_folder, device, mirroring=False)
        self._classes = scored_classes(model.dataset_json)
        self._cases, self._site_of = list(cases), site_of

    def of(self, weights: Mapping[str, np.ndarray], own: Mapping[str, Mapping[str, np.ndarray]]) -> float:
        """Dice of a model.

        Args:
            weights: name -> array, of the whole network.
            own: site -> its own layers; its cases are predicted with these.
        """
        shared = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
        scores = []
        for site, cases in itertools.groupby(sorted(self._cases, key=self._site_of.__getitem__), self._site_of.__getitem__):
            local = {name: torch.from_numpy(np.array(value)) for name, value in own.get(site, {}).items()}
            self._predictor.replace_weights({**shared, **local})
            scores += [self._score(case) for case in cases]
        return fmean(scores)

    def _score(self, case: str) -> float:
        maps = self._predictor.label_maps(case)
        if maps is None:
            return 0.0
        prediction, truth = maps
        truths, predictions = self._classes.masks(truth, truth), self._classes.masks(truth, prediction)
        return fmean(dice(mask, predictions[label]) for label, mask in truths.items())


def spread_over_sites(cases: Sequence[str], cohort: Cohort, number: int) -> list[str]:
    """At most this many of the cases, taken from the sites in turn."""
    groups: dict[str, list[str]] = {}
    for case in sorted(cases):
        groups.setdefault(cohort.cases[case].site, []).append(case)
    turns = itertools.zip_longest(*(groups[site] for site in sorted(groups)))
    return [case for turn in turns for case in turn if case is not None][:number]
