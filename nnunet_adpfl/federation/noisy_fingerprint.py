"""The differentially private fingerprint (rule 13): each site pays for, noises and sends histograms of its patients, once.

Order at a site: its cases are checked and measured (in memory, nothing exact is written); the Gaussian event is written to
ledger and odometer; noise is added; the noisy histograms are stored in sites/SITE/fingerprints/RELEASE.safetensors. Only
that file leaves the site: no case, no exact number. Everything made from it is free: other planners, other widths.

A crash before the payment costs nothing. One after it leaves a payment without histograms: the next call makes a new
release, which is paid for anew, because noise is never drawn twice for one payment.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from nnunet_adpfl import atomic_files, json_files
from nnunet_adpfl.cohort import Cohort
from nnunet_adpfl.errors import InputError
from nnunet_adpfl.federation import denoising, examination, public_bins
from nnunet_adpfl.federation.preprocessing import RECORDS_FOLDER
from nnunet_adpfl.federation.privacy_planning import default_delta
from nnunet_adpfl.federation.public_bins import Questions
from nnunet_adpfl.federation.raw_cases import RawCases
from nnunet_adpfl.nnunet_compat import planning as stock
from nnunet_adpfl.privacy import mechanism
from nnunet_adpfl.privacy.noise import Randomness, SecretRandomness
from nnunet_adpfl.privacy.plan import FingerprintRelease
from nnunet_adpfl.progress import note
from nnunet_adpfl.trainers import site_ledger

RECORD_NAME = "fingerprint_releases.json"  # digest of what was asked of which data -> name of the release
DEFAULT_NOISE = 2.0  # standard deviation / sensitivity; docs/fingerprint.md says why
_MOST_HEADER_BYTES = 2**16


@dataclass(frozen=True)
class Asked:
    """One noisy fingerprint that is wanted.

    Attributes:
        noise_multiplier: z of every site.
        before_paying: called when a new release is about to be made; raises where it would be of no use.
        randomness: of the noise; operating system entropy through ChaCha20, except in tests.
    """

    noise_multiplier: float
    before_paying: Callable[[], None]
    randomness: Randomness | None = None


def noisy_fingerprint(
    preprocessed: Path, raw: RawCases, cohort: Cohort, asked: Asked, processes: int | None = None
) -> tuple[dict[str, Any], FingerprintRelease]:
    """nnU-Net's fingerprint from noisy histograms, and the release that was paid for; a stored one is used again.

    Raises InputError for a broken case or a damaged file, PrivacyRefusedError where the ledger of a release is missing.
    """
    questions = questions_about(raw)
    state = examination.state_of(raw)
    digest = _digest(state, cohort, asked.noise_multiplier)
    release = _known_release(preprocessed, cohort.sites, digest, asked.noise_multiplier)
    if release is None:
        release = _new_release(preprocessed, raw, cohort, questions, asked, processes)
        _remember(preprocessed, digest, release)
    else:
        note(f"noisy fingerprint {release.release} is used again: nothing is spent")
    examination.note_checked(preprocessed, state)
    total = np.zeros(questions.size)
    for site in cohort.sites:
        site_ledger.check_fingerprint_paid(preprocessed, site, cohort.units(site), release)
        total += load(stored_file(preprocessed, site, release), questions)
    noise = asked.noise_multiplier * len(cohort.sites) ** 0.5
    answers = denoising.answers(questions, total, len(cohort.units()), noise)
    if answers.drowned:
        note(f"fingerprint: the noise drowns {', '.join(answers.drowned)}; declared usual values are planned with instead")
    return answers.fingerprint(), release


def questions_about(raw: RawCases) -> Questions:
    return public_bins.questions(raw.dataset_json, stock.declared_reader_name(raw.dataset_json))


def stored_file(preprocessed: Path, site: str, release: FingerprintRelease) -> Path:
    """The only thing about its patients that a site sends for planning."""
    return preprocessed / "sites" / site / "fingerprints" / f"{release.release}.safetensors"


def unit_vectors(cases: Mapping[str, Sequence[str]], answers: Mapping[str, np.ndarray]) -> np.ndarray:
    """One vector per unit, the mean over its cases (its norm is at most theirs); shape (units, coordinates)."""
    return np.stack([np.mean([answers[case] for case in names], axis=0) for names in cases.values()])


def _new_release(
    preprocessed: Path, raw: RawCases, cohort: Cohort, questions: Questions, asked: Asked, processes: int | None
) -> FingerprintRelease:
    asked.before_paying()
    stock.check_labels(raw.dataset_json)
    _say_what_drowns(questions, cohort, asked.noise_multiplier)
    reader = stock.declared_reader_name(raw.dataset_json)
    names = list(raw.files)
    measured = examination.examine(names, raw, reader, _Measure(questions), "noisy fingerprint", processes)
    answers = dict(zip(names, measured, strict=True))
    release = FingerprintRelease(release=f"fingerprint-{secrets.token_hex(4)}", noise_multiplier=asked.noise_multiplier)
    for site in cohort.sites:
        vectors = unit_vectors(cohort.cases_by_unit(site), answers)
        _release_site(preprocessed, site, vectors, cohort, questions, release, asked.randomness)
    note(f"noisy fingerprint {release.release}: paid for at every site, noise multiplier {asked.noise_multiplier:g}")
    return release


def _release_site(
    preprocessed: Path,
    site: str,
    vectors: np.ndarray,
    cohort: Cohort,
    questions: Questions,
    release: FingerprintRelease,
    randomness: Randomness | None,
) -> None:
    """Pay, add noise, store; this runs at the site."""
    permit = site_ledger.pay_for_fingerprint(
        preprocessed, site, cohort.units(site), release=release, unit=cohort.unit_kind, delta=default_delta(len(cohort.units()))
    )
    generator = (randomness or SecretRandomness("secure")).noise(site, 0)
    parts = questions.split(mechanism.released_sum(vectors, permit, generator))
    stored = safetensors.numpy.save({name: np.ascontiguousarray(part) for name, part in parts.items()})
    atomic_files.write_bytes(stored_file(preprocessed, site, release), stored, private=True)


@dataclass(frozen=True)
class _Measure:
    """A function that can be sent to worker processes."""

    questions: Questions

    def __call__(self, opened: stock.OpenCase) -> np.ndarray:
        return self.questions.answer(*opened.analysis(public_bins.SAMPLES))


def load(path: Path, questions: Questions) -> np.ndarray:
    """A site's noisy vector, checked: names, shapes and types of exactly these questions, every number finite.

    Raises InputError for a file that is anything else.
    """
    wanted = {question.name: len(question.centres) for question in questions.asked}
    try:
        if path.stat().st_size > 8 * questions.size + _MOST_HEADER_BYTES:
            raise ValueError("it is too large")
        found = safetensors.numpy.load(path.read_bytes())
        if {name: part.shape for name, part in found.items()} != {name: (bins,) for name, bins in wanted.items()}:
            raise ValueError("its histograms are not those that were asked for")
        if any(part.dtype != np.float64 or not np.isfinite(part).all() for part in found.values()):
            raise ValueError("its numbers are not finite float64")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"{path} is damaged ({reason}): restore it, or remove it to have a new one made, which spends again") from None
    return np.concatenate([found[name] for name in wanted])


def _say_what_drowns(questions: Questions, cohort: Cohort, noise_multiplier: float) -> None:
    units, sites = len(cohort.units()), len(cohort.sites)
    lost = denoising.drowning(questions, units, noise_multiplier * sites**0.5)
    if lost:
        note(
            f"fingerprint: {units} {cohort.unit_kind}s at {sites} sites are too few for noise multiplier {noise_multiplier:g}: it drowns "
            f"{', '.join(lost)}, and declared usual values are planned with; take a smaller --fingerprint-noise, or public:PLANS.json"
        )


def _digest(state: str, cohort: Cohort, noise_multiplier: float) -> str:
    """What a stored release answers: these questions, of this data, with this noise. Stays at the site."""
    content = [state, cohort.digest(), noise_multiplier, public_bins.VERSION]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _known_release(preprocessed: Path, sites: Sequence[str], digest: str, noise_multiplier: float) -> FingerprintRelease | None:
    """The release that answers this already, whole at every site."""
    name = _releases(preprocessed).get(digest)
    if name is None:
        return None
    release = FingerprintRelease(release=name, noise_multiplier=noise_multiplier)
    return release if all(stored_file(preprocessed, site, release).is_file() for site in sites) else None


def _remember(preprocessed: Path, digest: str, release: FingerprintRelease) -> None:
    path = preprocessed / RECORDS_FOLDER / RECORD_NAME
    atomic_files.write_json(path, {**_releases(preprocessed), digest: release.release})


def _releases(preprocessed: Path) -> dict[str, str]:
    try:
        return {str(digest): str(name) for digest, name in json_files.load(preprocessed / RECORDS_FOLDER / RECORD_NAME).items()}
    except (OSError, ValueError, AttributeError):
        return {}  # then a new release is made, which spends again and says so
