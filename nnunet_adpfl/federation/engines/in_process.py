"""All sites one after the other on one device: one network and one pool of loader workers for the whole run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from nnunet_adpfl.errors import AdpflError, BudgetExhaustedError, PrivacyRefusedError
from nnunet_adpfl.federation.client import Site, run_site_round
from nnunet_adpfl.federation.messages import RoundTask, SiteFailure, SiteUpdate
from nnunet_adpfl.privacy import mechanism as mechanisms
from nnunet_adpfl.privacy.noise import Randomness
from nnunet_adpfl.trainers.patient_loader import PatientLoader
from nnunet_adpfl.trainers.prepared_fold import PreparedFold
from nnunet_adpfl.trainers.private_model import PrivateModel


class InProcess:
    """Engine for one machine.

    Args:
        run_folder: the run; each site keeps its files in ``sites/SITE`` below it.
        prepared: what all sites train on.
        model: shared by the sites; every task brings its own weights.
        loader: shared pool of workers.
        randomness: secret in real runs; tests inject their own.
    """

    def __init__(
        self, run_folder: Path, prepared: PreparedFold, model: PrivateModel, loader: PatientLoader, randomness: Randomness
    ) -> None:
        mechanism = mechanisms.make(prepared.plan, prepared.fold.name)
        self._loader = loader
        self._sites = {
            name: Site(name, run_folder / "sites" / name, prepared, mechanism, model, loader, randomness)
            for name in prepared.sites
        }

    def collect(self, tasks: Mapping[str, RoundTask]) -> Iterator[SiteUpdate | SiteFailure]:
        for name in sorted(tasks):
            yield _answer(tasks[name], self._sites[name])

    def close(self) -> None:
        self._loader.close()


def _answer(task: RoundTask, site: Site) -> SiteUpdate | SiteFailure:
    try:
        return run_site_round(task, site)
    except BudgetExhaustedError as error:
        return SiteFailure(site.name, str(error), budget_spent=True)
    except PrivacyRefusedError as error:
        return SiteFailure(site.name, str(error), refused=True)
    except AdpflError as error:
        return SiteFailure(site.name, str(error))
