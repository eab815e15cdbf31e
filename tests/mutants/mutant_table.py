"""Planted faults in the code that the privacy claim rests on, each with the tests that must notice it.

A mutant is a replacement of source text. The old text must occur exactly once, so that a mutant cannot rot unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass

SAMPLING = "privacy/test_rule_02_sampling.py"
GRADIENTS = "privacy/test_rules_03_to_06_gradients.py"
NOISE = "privacy/test_rules_07_and_08_noise.py"
LEDGER = "privacy/test_rules_09_and_11_ledger.py"
SITES = "privacy/test_rule_14_across_sites.py"
DETAILS = "privacy/test_rules_02_to_11_details.py"
LOADER = "trainers/test_patient_loader.py"
REAL = "trainers/test_real_gradients.py"
START = "trainers/test_initial_weights.py"
RELEASE = "trainers/test_release.py"
STOCK = "trainers/test_stock_trainer.py"
CLIENT = "federation/test_client.py"
ROUNDS = "federation/test_rounds.py"
REFUSALS = "federation/test_refusals.py"
KILLS = "federation/test_interruptions.py"
FILTER = "privacy/test_rule_10_filter.py"
SOURCES = "privacy/test_rule_07_noise_sources.py"
CONTROL = "trainers/test_rule_10_noise_control.py"
FINGERPRINT = "federation/test_noisy_fingerprint.py"
FILES = "trainers/test_rule_15_files.py"
INSTALL = "trainers/test_installation.py"
MODES = "trainers/test_rule_12_file_modes.py"
TAMPERED = "privacy/test_rule_11_tampered_ledgers.py"
TOTALS = "trainers/test_rule_11_patient_totals.py"
AGGREGATION = "federation/test_aggregation.py"
ALONE = "privacy/test_fused_independence.py"
CHOICE = "privacy/test_engine_choice.py"
INVERTED = "privacy/test_inverted_norm.py"
FUSED = "privacy/test_fused_engine.py"
FUSED_NETWORKS = "trainers/test_fused_networks.py"
CHALLENGES = "dataset_conversion/test_challenges.py"
ASSIGNMENT = "dataset_conversion/test_site_assignment.py"
LEFT_OUT = "federation/test_left_out_sites.py"
COHORT_CHECK = "federation/test_cohort_check.py"
MASKS = "privacy/test_rule_04_masks.py"
MASKED_RUNS = "federation/test_masked_runs.py"
STRATEGIES = "federation/test_strategies.py"
FILTERS = "federation/test_update_filters.py"
COMPARISON = "experiments/test_comparison.py"
PLANNED = "cli/test_plan_choices.py"
SUBSPACE = "trainers/test_public_subspace.py"


@dataclass(frozen=True)
class Mutant:
    """One planted fault. Quick ones have tests of the privacy core alone, which need no planned data set.

    Attributes:
        name: what is wrong.
        rule: the privacy rule of the design that it breaks.
        file: source file in the package.
        changes: old text -> new text.
        tests: node ids below ``tests/``; at least one of them must fail.
        quick: part of the test suite; the others are run by ``make mutants``.
    """

    name: str
    rule: int
    file: str
    changes: dict[str, str]
    tests: tuple[str, ...]
    quick: bool = False


MUTANTS = (
    # Rule 1: the unit
    Mutant(
        "every scan of BraTS 2024 is a patient", 1, "dataset_conversion/brats.py",
        {r'_SCAN = re.compile(r"-\d{3}$")': '_SCAN = re.compile("nothing")'},
        (f"{CHALLENGES}::test_rule_01_scans_of_a_patient_are_one_unit",),
    ),
    Mutant(
        "without a table of sites every case is a unit", 1, "dataset_conversion/site_assignment.py",
        {"CohortEntry(unit, ONE_SITE) for case, unit": "CohortEntry(case, ONE_SITE) for case, unit"},
        (f"{CHALLENGES}::test_rule_01_patients_of_brats2024_are_known_without_any_table",),
    ),
    Mutant(
        "a table's patients may part the images of a lesion", 1, "dataset_conversion/site_assignment.py",
        {"if row.patient is not None and patients.setdefault(unit_of[case], row.patient) != row.patient:": "if False:",
         "units = {case: patients.get(unit, unit) for case, unit in unit_of.items()}":
         "units = {case: found[case].patient or unit for case, unit in unit_of.items()}"},
        (f"{ASSIGNMENT}::test_rule_01_patients_may_join_units_and_never_part_them",),
    ),
    Mutant(
        "the same image under another patient's name passes", 1, "federation/cohort_check.py",
        {"        if len(cases) < 2:": "        if len(cases) < 2 or len({cohort.cases[case].unit for case in cases}) > 1:"},
        (f"{COHORT_CHECK}::test_rule_01_the_same_image_of_two_patients_is_found_however_it_is_packed",),
    ),
    Mutant(
        "a site is left out of a fold though some of its cases are nowhere", 1, "folds.py",
        {"if case not in only_validating}": "if case in fold.train}"},
        (f"{LEFT_OUT}::test_a_site_half_left_out_is_refused",),
    ),
    Mutant(
        "a run is scored on patients that its changed splits hold out now", 1, "evaluation/run_records.py",
        {"        self._check_splits_are_unchanged(fold)\n": ""},
        (f"{LEFT_OUT}::test_a_run_is_not_scored_on_whom_it_trained_on",),
    ),
    Mutant(
        "a central run takes a fold that leaves out a site", 9, "trainers/central_run.py",
        {"    if prepared.left_out_sites:": "    if False:"},
        (f"{LEFT_OUT}::test_central_training_needs_every_site",),
    ),
    Mutant(
        "images are compared by their packed bytes", 1, "federation/cohort_check.py",
        {"digest.update(images.astype(np.float32, copy=False).data)": "digest.update(open(job[0]['images'][0], 'rb').read())"},
        (f"{COHORT_CHECK}::test_rule_01_the_same_image_of_two_patients_is_found_however_it_is_packed",),
    ),
    Mutant(
        "a patient whom a table has at two sites is at the last one's", 14, "dataset_conversion/site_assignment.py",
        {"    if shared and not majority:": "    if False:"},
        (f"{ASSIGNMENT}::test_rule_14_two_sites_are_refused_or_settled_by_majority",),
    ),
    Mutant(
        "every case is a unit of its own", 1, "cohort.py",
        {"grouped.setdefault(entry.unit, []).append(case)": "grouped.setdefault(case, []).append(case)"},
        (f"{LOADER}::test_rule_01_a_unit_with_two_cases_is_one_contribution",),
    ),
    Mutant(
        "a missing cohort is read as one unit per case", 1, "cohort.py",
        {
            "    except FileNotFoundError:\n        raise InputError(": (
                "    except FileNotFoundError:\n"
                "        splits = json.loads((folder / 'splits_final.json').read_text())\n"
                "        cases = {case for split in splits for part in split.values() for case in part}\n"
                "        return Cohort('patient', {case: CohortEntry(case, 'site-a') for case in cases})\n"
                "        raise InputError("
            )
        },
        (f"{REFUSALS}::test_rule_01_a_missing_cohort_is_never_read_as_one_unit_per_case",),
    ),
    Mutant(
        "a changed cohort is accepted", 1, "trainers/prepared_fold.py",
        {"if cohort.digest() != plan.cohort_digest:": "if False:"},
        (f"{REFUSALS}::test_rule_11_files_that_do_not_fit_each_other[cohort with another name]",),
    ),
    Mutant(
        "a unit may train and validate", 1, "folds.py", {"        if shared:": "        if False:"},
        (f"{REFUSALS}::test_rule_01_a_unit_that_both_trains_and_validates_is_named",),
    ),
    Mutant(
        "patches of a unit's first case only", 1, "nnunet_compat/patches.py",
        {"order = np.random.permutation(len(cases)).tolist() * turns": "order = [0] * len(cases) * turns"},
        (f"{LOADER}::test_rule_01_patches_are_spread_over_a_units_cases",),
    ),
    # Rule 2: sampling
    Mutant(
        "shuffled passes over the units", 2, "privacy/sampling.py",
        {
            "chosen = generator.random(len(units)) < sampling_rate": (
                "size = max(1, round(len(units) * sampling_rate))\n"
                "    pool = poisson_draw.__dict__.setdefault('pool', [])\n"
                "    if len(pool) < size or not set(pool) <= set(units):\n"
                "        pool[:] = [str(unit) for unit in generator.permutation(list(units))]\n"
                "    taken = {pool.pop() for _ in range(size)}\n"
                "    chosen = [unit in taken for unit in units]"
            )
        },
        (f"{SAMPLING}::test_rule_02_size_is_binomial_in_mean_and_variance",), quick=True,
    ),
    Mutant(
        "a fixed number of units", 2, "privacy/sampling.py",
        {
            "chosen = generator.random(len(units)) < sampling_rate": (
                "chosen = generator.permutation(len(units)) < round(len(units) * sampling_rate)"
            )
        },
        (f"{SAMPLING}::test_rule_02_size_is_binomial_in_mean_and_variance",),
    ),
    Mutant(
        "drawn with replacement, as nnU-Net does", 2, "privacy/sampling.py",
        {
            "chosen = generator.random(len(units)) < sampling_rate": (
                "taken = generator.choice(len(units), max(1, round(len(units) * sampling_rate)))\n"
                "    chosen = np.isin(np.arange(len(units)), taken)"
            )
        },
        (f"{SAMPLING}::test_rule_02_size_is_binomial_in_mean_and_variance",),
    ),
    Mutant(
        "an empty draw is drawn again", 2, "privacy/sampling.py",
        {
            "chosen = generator.random(len(units)) < sampling_rate": (
                "chosen = generator.random(len(units)) < sampling_rate\n"
                "    while not chosen.any():\n"
                "        chosen = generator.random(len(units)) < sampling_rate"
            )
        },
        (f"{SAMPLING}::test_rule_02_empty_draws_happen_as_often_as_they_must",),
    ),
    Mutant(
        "a cap on the draw", 2, "privacy/sampling.py",
        {
            "chosen = generator.random(len(units)) < sampling_rate": (
                "chosen = generator.random(len(units)) < sampling_rate\n"
                "    chosen &= np.cumsum(chosen) <= 2 * len(units) * sampling_rate"
            )
        },
        (f"{DETAILS}::test_rule_02_every_size_of_a_draw_comes_as_often_as_it_must",),
    ),
    Mutant(
        "drawn at twice the rate that is accounted for", 2, "privacy/mechanism.py",
        {
            "return poisson_draw(units, self.plan.sampling_rate, randomness.draws(site, step))": (
                "return poisson_draw(units, min(1.0, 2 * self.plan.sampling_rate), randomness.draws(site, step))"
            )
        },
        (f"{DETAILS}::test_rule_09_the_ledger_names_the_rate_and_the_noise_of_the_steps",),
    ),
    Mutant(
        "draws derived from the run's seed", 2, "privacy/mechanism.py",
        {"randomness.draws(site, step))": "np.random.default_rng([self.plan.seed, step]))"},
        (f"{SAMPLING}::test_rule_02_draws_do_not_depend_on_the_run_seed_and_never_repeat",), quick=True,
    ),
    Mutant(
        "secret randomness can be stored", 2, "privacy/noise.py",
        {'        raise TypeError("secret randomness is never stored or sent")': "        return None"},
        (f"{SAMPLING}::test_rule_02_secret_randomness_cannot_be_stored",),
    ),
    Mutant(
        "drawn again until nobody unreadable is drawn", 2, "trainers/patient_loader.py",
        {"raise UnreadableCaseError(parcel)": "raise InputError(parcel)"},
        (f"{LOADER}::test_rule_02_an_unreadable_case_stops_the_run_and_nobody_is_drawn_again",),
    ),
    Mutant(
        "an unreadable case is skipped, the next one takes its place", 2, "trainers/patient_loader.py",
        {"raise UnreadableCaseError(parcel)": "continue"},
        (f"{LOADER}::test_rule_02_an_unreadable_case_stops_the_stream_with_one_line",),
    ),
    # Rule 3: a patient's gradient
    Mutant(
        "one layer is not clipped", 3, "privacy/gradients/loop.py",
        {
            "torch._foreach_add_(totals, gradients, alpha=factor)": (
                "torch._foreach_add_(totals, gradients, alpha=factor)\n"
                "            totals[-1].add_(gradients[-1], alpha=1 - factor)"
            )
        },
        (f"{GRADIENTS}::test_rule_03_one_unit_adds_at_most_norm_one",), quick=True,
    ),
    Mutant(
        "the norm leaves a tensor out", 3, "privacy/gradients/loop.py",
        {"norm = _norm(gradients)": "norm = _norm(gradients[1:])"},
        (f"{REAL}::test_rule_03_no_tensor_escapes_the_clip",),
    ),
    Mutant(
        "clipped at a tenth more", 3, "privacy/clipping.py",
        {"return 1.0 / max(self.clip_norm, norm)": "return 1.0 / max(self.clip_norm, norm / 1.1)"},
        (f"{DETAILS}::test_rule_03_factor_times_norm_is_never_above_one",),
    ),
    Mutant(
        "each layer clipped by its own norm", 3, "privacy/gradients/loop.py",
        {
            "torch._foreach_add_(totals, gradients, alpha=factor)": (
                "torch._foreach_add_(totals, [g * rule.factor(_norm([g])) for g in gradients])"
            )
        },
        (f"{GRADIENTS}::test_rule_03_one_unit_adds_at_most_norm_one",),
    ),
    Mutant(
        "batch dice on", 3, "nnunet_compat/training.py",
        {
            "return trainer._build_loss()": (
                "trainer.configuration_manager.configuration['batch_dice'] = True\n    return trainer._build_loss()"
            )
        },
        (f"{REAL}::test_rule_03_loss_of_a_patient_is_the_mean_over_its_patches",),
    ),
    Mutant(
        "plans with batch dice are accepted", 3, "nnunet_compat/training.py", {"if settings.batch_dice:": "if False:"},
        (f"{REFUSALS}::test_rule_11_files_that_do_not_fit_each_other[batch_dice]",),
    ),
    Mutant(
        "batch normalisation is accepted", 3, "nnunet_compat/training.py",
        {"if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):": "if False:"},
        (f"{REAL}::test_rule_03_networks_that_mix_patients_are_refused",),
    ),
    Mutant(
        "dropout is accepted", 3, "nnunet_compat/training.py",
        {"if any(_drops_at_random(module) for module in network.modules()):": "if False:"},
        (f"{REAL}::test_rule_03_networks_that_mix_patients_are_refused",),
    ),
    Mutant(
        "foreground oversampled by position", 3, "nnunet_compat/patches.py",
        {"            probabilistic_oversampling=True,": "            probabilistic_oversampling=False,"},
        (f"{LOADER}::test_rule_03_foreground_is_oversampled_by_chance_for_each_patch_alone",),
    ),
    Mutant(
        "one augmentation stream for all patients", 3, "nnunet_compat/patches.py",
        {"        with _seeded(key):": "        if True:"},
        (f"{LOADER}::test_rule_03_patches_are_the_same_bits_whoever_else_is_drawn",),
    ),
    Mutant(
        "torch's generator is not keyed", 3, "nnunet_compat/patches.py",
        {'    torch.random.default_generator.manual_seed(int.from_bytes(key[:8], "little") >> 1)\n': ""},
        (f"{LOADER}::test_rule_03_patches_do_not_depend_on_generators_of_the_process",),
    ),
    Mutant(
        "patches keyed with 32 bits", 3, "nnunet_compat/patches.py",
        {"np.random.seed(np.frombuffer(key, dtype=np.uint32))": "np.random.seed(int.from_bytes(key[:4], 'little'))"},
        (f"{LOADER}::test_rule_03_every_part_of_the_key_counts",),
    ),
    Mutant(
        "patches keyed by the order of the draw", 3, "trainers/private_training.py",
        {"self._randomness.patch_key(site, step, unit)": "self._randomness.patch_key(site, step, str(group.index(unit)))"},
        (f"{LOADER}::test_rule_03_keys_of_a_block_depend_on_site_step_and_unit_alone",),
    ),
    Mutant(
        "the same patches every step", 3, "trainers/private_training.py",
        {"self._randomness.patch_key(site, step, unit)": "self._randomness.patch_key(site, 0, unit)"},
        (f"{LOADER}::test_rule_03_keys_of_a_block_depend_on_site_step_and_unit_alone",),
    ),
    Mutant(
        "names of a patch key run into each other", 3, "privacy/noise.py",
        {'message = "\\0".join((site, str(step), unit)).encode()': 'message = "".join((site, str(step), unit)).encode()'},
        (f"{LOADER}::test_rule_03_keys_differ_by_site_step_unit_and_run_and_are_long",),
    ),
    # Rule 4: sum and divisor
    Mutant(
        "clipped after the sum", 4, "privacy/gradients/loop.py",
        {
            "torch._foreach_add_(totals, gradients, alpha=factor)": "torch._foreach_add_(totals, gradients)",
            "        self._clear()\n        return result": (
                "        self._clear()\n"
                "        torch._foreach_mul_(totals, rule.factor(_norm(totals)))\n"
                "        return result"
            ),
        },
        (f"{GRADIENTS}::test_rule_04_sum_of_clipped_gradients_not_clipped_sum",), quick=True,
    ),
    Mutant(
        "mean instead of sum", 4, "privacy/gradients/loop.py",
        {
            "        self._clear()\n        return result": (
                "        self._clear()\n        torch._foreach_div_(totals, max(1, len(result.losses)))\n        return result"
            )
        },
        (f"{GRADIENTS}::test_rule_04_sum_of_clipped_gradients_not_clipped_sum",),
    ),
    Mutant(
        "divided by the drawn size", 4, "privacy/mechanism.py",
        {
            "return NoisyUpdate(_divided(summed.total, expected_units), noisy_count, count_noise, gradient_z": (
                "return NoisyUpdate(_divided(summed.total, len(summed.losses) or expected_units), noisy_count, count_noise, gradient_z"
            )
        },
        (f"{DETAILS}::test_rule_04_divisor_of_a_private_release_ignores_the_drawn_size",), quick=True,
    ),
    Mutant(
        "weight decay before the noise", 4, "privacy/gradients/loop.py",
        {"torch.zeros_like(parameter, dtype=wide_type(parameter))": "(3e-5 * parameter.detach()).to(wide_type(parameter))"},
        (f"{GRADIENTS}::test_rule_04_noise_is_on_every_trained_coordinate_also_of_an_empty_draw",),
    ),
    Mutant(
        "shares of the average from drawn numbers", 4, "federation/client.py",
        {"        expected_units=outcome.expected_units,": "        expected_units=float(len(outcome.losses) or 1),"},
        (f"{CLIENT}::test_update_holds_the_trained_tensors_alone",),
    ),
    Mutant(
        "drawn numbers in the records of a central run", 4, "trainers/central_run.py",
        {'{"steps": steps, "attempt": attempt}': '{"steps": steps, "attempt": attempt, "drawn": len(outcome.losses)}'},
        (f"{STOCK}::test_rule_04_records_of_a_central_run_hold_declared_figures_alone",),
    ),
    # Rule 5: not finite
    Mutant(
        "zero by multiplication", 5, "privacy/gradients/loop.py",
        {"result.non_finite += 1\n                continue": "result.non_finite += 1\n                factor = 0.0"},
        (f"{GRADIENTS}::test_rule_05_a_unit_that_is_not_finite_adds_exactly_nothing",), quick=True,
    ),
    Mutant(
        "only the loss is looked at", 5, "privacy/gradients/loop.py",
        {"if not (math.isfinite(loss) and math.isfinite(factor)):": "if not math.isfinite(loss):"},
        (f"{DETAILS}::test_rule_05_a_finite_loss_with_a_gradient_that_is_not_adds_nothing",),
    ),
    # Rule 6: numbers
    Mutant(
        "sum in half precision", 6, "privacy/gradients/precision.py",
        {"    return torch.float64 if tensor.dtype == torch.float64 else torch.float32": "    return tensor.dtype"},
        (f"{GRADIENTS}::test_rule_06_clip_and_sum_are_float32_also_for_a_half_precision_network",),
    ),
    Mutant(
        "noise in half precision", 6, "privacy/noise.py",
        {"if tensor.dtype not in (torch.float32, torch.float64):": "if False:"},
        (f"{GRADIENTS}::test_rule_06_noise_in_half_precision_is_refused",),
    ),
    # Rule 7: noise
    Mutant(
        "noise halved", 7, "privacy/noise.py", {"alpha=standard_deviation / math": "alpha=0.5 * standard_deviation / math"},
        (f"{NOISE}::test_rule_07_standard_deviation_is_the_accounted_one",), quick=True,
    ),
    Mutant(
        "noise 5 % low", 7, "privacy/noise.py", {"alpha=standard_deviation / math": "alpha=0.95 * standard_deviation / math"},
        (f"{NOISE}::test_rule_07_standard_deviation_is_the_accounted_one",), quick=True,
    ),
    Mutant(
        "noise that is not Gaussian", 7, "privacy/noise.py",
        {"generator.standard_normal(size, out=drawn[0])": "drawn[0] = generator.uniform(-(3**0.5), 3**0.5, size)"},
        (f"{NOISE}::test_rule_07_shape_is_gaussian",),
    ),
    Mutant(
        "the secure generator is not one", 7, "privacy/noise.py",
        {'_chacha_generator if source == "secure" else _philox_generator': "_philox_generator"},
        (f"{SOURCES}::test_rule_07_secure_noise_comes_from_chacha20",), quick=True,
    ),
    Mutant(
        "the secure generator has eight rounds", 7, "privacy/noise.py", {"CHACHA_ROUNDS = 20": "CHACHA_ROUNDS = 8"},
        (f"{SOURCES}::test_rule_07_secure_noise_comes_from_chacha20",),
    ),
    Mutant(
        "the secure generator is keyed with 64 bits", 7, "privacy/noise.py",
        {'key = int.from_bytes(os.urandom(KEY_BYTES), "little")': 'key = int.from_bytes(os.urandom(8), "little")'},
        (f"{SOURCES}::test_rule_07_every_call_has_a_new_key_of_256_bits",),
    ),
    Mutant(
        "four Gaussians with the noise of two", 7, "privacy/noise.py", {"/ math.sqrt(terms)": "/ terms"},
        (f"{SOURCES}::test_rule_07_the_sum_of_gaussians_has_the_same_deviation",),
    ),
    Mutant(
        "four Gaussians are asked for, one is added", 7, "privacy/mechanism.py",
        {"generator, self.plan.noise_terms)": "generator)"},
        (f"{SOURCES}::test_rule_07_the_plan_decides_how_many_gaussians_are_added",),
    ),
    Mutant(
        "sums leave with all their last bits", 7, "privacy/noise.py",
        {"part.copy_(on_grid(noisy, standard_deviation))": "part.copy_(noisy)"},
        (f"{SOURCES}::test_rule_07_what_leaves_lies_on_a_public_grid",), quick=True,
    ),
    Mutant(
        "the grid depends on the sum", 7, "privacy/noise.py",
        {"math.log2(standard_deviation)": "math.log2(float(noisy.abs().max()))"},
        (f"{SOURCES}::test_rule_07_what_leaves_lies_on_a_public_grid",),
    ),
    Mutant(
        "no noise at all is accepted", 7, "privacy/noise.py",
        {"if not (math.isfinite(standard_deviation) and standard_deviation > 0):": "if False:"},
        (f"{SOURCES}::test_rule_07_noise_of_no_size_is_refused",),
    ),
    Mutant(
        "one tensor without noise", 7, "privacy/mechanism.py",
        {"for tensor in summed.total.values():\n            add_gaussian_": (
            "for tensor in list(summed.total.values())[1:]:\n            add_gaussian_"
        )},
        (f"{GRADIENTS}::test_rule_04_noise_is_on_every_trained_coordinate_also_of_an_empty_draw",), quick=True,
    ),
    Mutant(
        "one tensor of the real network without noise", 7, "privacy/mechanism.py",
        {"for tensor in summed.total.values():\n            add_gaussian_": (
            "for tensor in list(summed.total.values())[:-1]:\n            add_gaussian_"
        )},
        (f"{REAL}::test_rule_04_every_coordinate_that_is_trained_gets_noise",),
    ),
    Mutant(
        "all tensors share their noise", 7, "privacy/mechanism.py",
        {"add_gaussian_(tensor, gradient_z, generator,": (
            "add_gaussian_(tensor, gradient_z, np.random.Generator(type(generator.bit_generator)(1)),"
        )},
        (f"{NOISE}::test_rule_07_independent_across_tensors_steps_sites_and_restarts",),
    ),
    Mutant(
        "the same noise every step", 7, "privacy/noise.py",
        {
            "    def noise(self, site: str, step: int) -> np.random.Generator:\n        return self._fresh_generator()": (
                "    def noise(self, site: str, step: int) -> np.random.Generator:\n"
                "        return np.random.Generator(np.random.Philox(int.from_bytes(self.patch_key(site, 0, ''), 'little')))"
            )
        },
        (f"{NOISE}::test_rule_07_independent_across_tensors_steps_sites_and_restarts",),
    ),
    Mutant(
        "two sites share their noise", 7, "privacy/noise.py",
        {
            "    def noise(self, site: str, step: int) -> np.random.Generator:\n        return self._fresh_generator()": (
                "    def noise(self, site: str, step: int) -> np.random.Generator:\n"
                "        return np.random.Generator(np.random.Philox(int.from_bytes(self.patch_key('', step, ''), 'little')))"
            )
        },
        (f"{NOISE}::test_rule_07_independent_across_tensors_steps_sites_and_restarts",),
    ),
    Mutant(
        "noise that a repeated step would replay", 7, "privacy/noise.py",
        {
            "    def noise(self, site: str, step: int) -> np.random.Generator:\n        return self._fresh_generator()": (
                "    def noise(self, site: str, step: int) -> np.random.Generator:\n"
                "        return np.random.Generator(np.random.Philox(int.from_bytes(self.patch_key(site, step, ''), 'little')))"
            )
        },
        (f"{DETAILS}::test_rule_07_real_generators_never_meet",),
    ),
    Mutant(
        "noise from a bare 32-bit seed", 7, "privacy/noise.py",
        {'entropy = int.from_bytes(os.urandom(KEY_BYTES), "little")': 'entropy = int.from_bytes(os.urandom(4), "little")'},
        (f"{DETAILS}::test_rule_07_generators_use_every_bit_of_at_least_16_bytes_of_entropy",), quick=True,
    ),
    Mutant(
        "noise derived from the run's seed", 7, "privacy/mechanism.py",
        {"generator = randomness.noise(site, step)": "generator = np.random.default_rng([self.plan.seed, step])"},
        (f"{NOISE}::test_rule_07_independent_across_tensors_steps_sites_and_restarts",),
    ),
    Mutant(
        "declared noise is calibrated away", 7, "privacy/mechanism.py",
        {"    if plan.noise_multiplier is not None:\n        return plan\n": ""},
        (f"{DETAILS}::test_rule_11_noise_that_was_declared_is_kept_by_the_calibration",),
    ),
    # Rule 8: adaptive clipping
    Mutant(
        "the count is not paid for", 8, "privacy/mechanism.py",
        {"gradient_z = gradient_noise_multiplier(z, count_noise)": "gradient_z = z"},
        (f"{NOISE}::test_rule_08_the_centred_count_is_noised_and_paid_for",), quick=True,
    ),
    Mutant(
        "the count is released without noise", 8, "privacy/mechanism.py",
        {"noisy_count = noisy_number(summed.centred_count, count_noise, generator)": "noisy_count = summed.centred_count"},
        (f"{NOISE}::test_rule_08_the_centred_count_is_noised_and_paid_for",),
    ),
    Mutant(
        "too little noise on the count is allowed", 8, "privacy/clipping.py",
        {"if not count_noise >= 2 * noise_multiplier:": "if False:"},
        (f"{NOISE}::test_rule_08_too_little_noise_on_the_count_is_refused",),
    ),
    Mutant(
        "the count is not centred", 8, "privacy/gradients/loop.py",
        {"0.5 if rule.is_below(norm) else -0.5": "1.0 if rule.is_below(norm) else 0.0"},
        (f"{DETAILS}::test_rule_08_each_unit_adds_half_or_minus_half_to_the_count",),
    ),
    Mutant(
        "no public limits of the clip norm", 8, "privacy/clipping.py",
        {"return min(max(moved, limits[0]), limits[1])": "return moved"},
        (f"{NOISE}::test_rule_08_clip_norm_moves_towards_the_quantile_and_stays_in_public_limits",),
    ),
    Mutant(
        "the clip norm is not restored", 8, "federation/rounds.py",
        {"        self._folder.rewind_rounds(self.state.round)": (
            "        self._folder.rewind_rounds(self.state.round)\n"
            "        self.state.clip_norm = self._mechanism.plan.clipping.clip_norm"
        )},
        (f"{KILLS}::test_rule_11_a_run_that_died_goes_on_to_the_same_weights[round's checkpoint written]",),
    ),
    # Rule 9: accounting
    Mutant(
        "the target is reported instead of what was spent", 9, "privacy/summary.py",
        {'    return accounting.epsilon(events, float(first["delta"]))': '    return float(first["target_epsilon"])'},
        (f"{LEDGER}::test_rule_09_an_outsider_recomputes_epsilon_in_ten_lines",),
    ),
    Mutant(
        "equal lines count once", 9, "privacy/accounting.py",
        {'float(event["noise_multiplier"])] += int(event["steps"])': 'float(event["noise_multiplier"])] = int(event["steps"])'},
        (f"{LEDGER}::test_rule_09_every_line_counts",), quick=True,
    ),
    Mutant(
        "the ledger names a smaller rate", 9, "privacy/mechanism.py",
        {"wanted = [accounting.poisson_gaussian(self.plan.sampling_rate, z, n) for z, n in levels]": (
            "wanted = [accounting.poisson_gaussian(self.plan.sampling_rate / 2, z, n) for z, n in levels]"
        )},
        (f"{DETAILS}::test_rule_09_the_ledger_names_the_rate_and_the_noise_of_the_steps",),
    ),
    Mutant(
        "the ledger names more noise", 9, "privacy/mechanism.py",
        {"wanted = [accounting.poisson_gaussian(self.plan.sampling_rate, z, n) for z, n in levels]": (
            "wanted = [accounting.poisson_gaussian(self.plan.sampling_rate, 1.1 * z, n) for z, n in levels]"
        )},
        (f"{DETAILS}::test_rule_09_the_ledger_names_the_rate_and_the_noise_of_the_steps",),
    ),
    Mutant(
        "unknown events are passed over", 9, "privacy/ledger.py", {'if line.get("event") not in KNOWN_EVENTS:': "if False:"},
        (f"{DETAILS}::test_rule_09_a_ledger_with_an_unknown_event_is_refused_by_every_reader",),
    ),
    Mutant(
        "the plan made from pooled statistics is not mentioned", 13, "trainers/site_ledger.py",
        {'if (plan.fingerprint == "pooled" or not noted) and "plan" not in scopes:': "if False:"},
        (f"{ROUNDS}::test_rule_09_run_ends_with_checkpoint_records_and_ledgers_within_the_target[nnUNetTrainerADP]",),
    ),
    Mutant(
        "training without noise is not mentioned", 9, "trainers/site_ledger.py",
        {'if not plan.is_private and "training" not in scopes:': "if False:"},
        (f"{ROUNDS}::test_rule_09_run_ends_with_checkpoint_records_and_ledgers_within_the_target[nnUNetTrainerNP]",),
    ),
    # Rule 10: levels
    Mutant(
        "any number of noise levels", 10, "privacy/plan.py", {"MAX_NOISE_LEVELS = 20": "MAX_NOISE_LEVELS = 2000"},
        (f"{DETAILS}::test_rule_10_at_most_twenty_declared_levels_of_noise",),
    ),
    Mutant(
        "noise levels rounded down", 10, "privacy/schedule.py",
        {"noise_multiplier + 0.5 * 10**-_DECIMALS": "noise_multiplier - 0.5 * 10**-_DECIMALS"},
        (f"{DETAILS}::test_rule_10_levels_are_never_below_what_was_declared",),
    ),
    Mutant(
        "a run that was stopped early reports what it spent", 10, "privacy/summary.py",
        {"realised_holds = ledger.went_as_declared(events, first) and not filtered": "realised_holds = not filtered"},
        (f"{ROUNDS}::test_rule_10_a_run_that_stopped_early_reports_the_declared_epsilon",),
    ),
    Mutant(
        "a data-driven run is reported by PLD over its realised noise", 10, "privacy/summary.py",
        {"realised_holds = ledger.went_as_declared(events, first) and not filtered": "realised_holds = complete",
         "        return accounting.epsilon_rdp(events, float(first[\"delta\"]), float(first[\"order\"]))":
         "        return accounting.epsilon(events, float(first[\"delta\"]))"},
        (f"{FILTER}::test_rule_10_the_filters_bound_is_reported_not_what_was_realised",), quick=True,
    ),
    Mutant(
        "the filter is checked by PLD", 10, "privacy/mechanism.py",
        {"        return accounting.epsilon_rdp(events, plan.delta, plan.adaptation.order)":
         "        return accounting.epsilon(events, plan.delta)"},
        (f"{FILTER}::test_rule_10_a_filter_never_allows_more_than_ordinary_composition",),
    ),
    Mutant(
        "the filter takes the best order afterwards", 10, "privacy/mechanism.py",
        {"accounting.epsilon_rdp(events, plan.delta, plan.adaptation.order)": "accounting.epsilon_rdp(events, plan.delta)"},
        (f"{FILTER}::test_rule_10_the_order_is_fixed_with_the_noise_and_is_the_best_one",
         f"{FILTER}::test_rule_10_no_choice_of_noise_levels_exceeds_the_budget",
         f"{FILTER}::test_rule_10_a_filter_never_allows_more_than_ordinary_composition"),
    ),
    Mutant(
        "a data-driven run needs no filter while it took no more steps than planned", 10, "privacy/mechanism.py",
        {"        spent = _epsilon(self.plan, events)\n": (
            "        if sum(event['steps'] for event in events) <= self.plan.steps:\n"
            "            return\n"
            "        spent = _epsilon(self.plan, events)\n"
        )},
        (f"{FILTER}::test_rule_10_no_choice_of_noise_levels_exceeds_the_budget", f"{FILTER}::test_rule_10_the_filter_does_stop"),
    ),
    Mutant(
        "a declared run chooses which steps it repeats", 10, "privacy/mechanism.py",
        {"            if self._within_planned_counts(events):\n": "            if _epsilon(self.plan, events) <= self.plan.epsilon:\n"},
        (f"{FILTER}::test_rule_10_a_declared_run_does_not_choose_which_of_its_levels_it_repeats",),
    ),
    Mutant(
        "any noise level may be asked for", 10, "privacy/mechanism.py",
        {"if not 0 <= level < self.plan.adaptation.levels:": "if False:"},
        (f"{FILTER}::test_rule_10_levels_outside_the_plan_are_refused",),
    ),
    Mutant(
        "a data-driven run is called a declared one", 10, "trainers/site_ledger.py",
        {"    if plan.is_data_driven:": "    if False:"},
        (f"{CONTROL}::test_rule_10_a_federated_run_lowers_its_noise_under_the_filter",),
    ),
    Mutant(
        "noise follows the loss on patients that train", 10, "trainers/prepared_fold.py",
        {"if both := sorted(": "if both := not sorted("},
        (f"{CONTROL}::test_rule_10_a_unit_that_trains_is_not_public",),
    ),
    Mutant(
        "noise follows the loss on private validation patients", 10, "privacy/plan.py",
        {'if self.adaptation.signal == "public_loss" and self.validation != "public":': "if False:"},
        (f"{FILTER}::test_rule_10_settings_that_contradict_each_other_are_refused",),
    ),
    Mutant(
        "a stopped data-driven run forgets its noise level", 10, "trainers/noise_control.py",
        {'int(known.get("level", 0))': "0"},
        (f"{CONTROL}::test_rule_10_a_stopped_data_driven_run_goes_on_as_if_it_had_not_been",
         f"{CONTROL}::test_rule_10_a_federated_run_lowers_its_noise_under_the_filter"),
    ),
    # Rule 13: the fingerprint
    Mutant(
        "the noisy fingerprint is not in the calibration", 13, "privacy/mechanism.py",
        {"    return [*(fingerprint_events(plan) if fingerprint else ()), *steps]": "    return steps"},
        (f"{FILTER}::test_rule_13_the_noisy_fingerprint_is_composed_with_the_training",), quick=True,
    ),
    Mutant("the cases of a patient are added up, not averaged", 13, "federation/noisy_fingerprint.py",
        {"np.mean([answers[case] for case in names], axis=0)": "np.sum([answers[case] for case in names], axis=0)"},
        (f"{FINGERPRINT}::test_rule_13_the_bound_is_reached",)),
    Mutant("a vector that is too long is not scaled down", 13, "privacy/clipping.py",
        {"(kept / np.maximum(norms, 1.0)).sum(axis=0)": "kept.sum(axis=0)"},
        (f"{FINGERPRINT}::test_rule_13_a_vector_that_is_too_long_is_scaled_down",)),
    Mutant("a vector that is not finite is multiplied by zero", 13, "privacy/clipping.py",
        {"kept = vectors[np.isfinite(vectors).all(axis=1)]": "kept = vectors * np.isfinite(vectors).all(axis=1, keepdims=True)"},
        (f"{FINGERPRINT}::test_rule_13_a_vector_that_is_not_finite_adds_nothing[inf]",)),
    Mutant("every histogram has the full sensitivity", 13, "federation/public_bins.py",
        {"math.sqrt(question.share / total)": "1.0"},
        (f"{FINGERPRINT}::test_rule_13_one_patient_moves_the_sum_by_at_most_one[CT]",)),
    Mutant("the norm of the encoding is forgotten", 13, "federation/public_bins.py",
        {"np.asarray(root @ histogram) * (self.weights[question.name] / question.column_norm)":
         "np.asarray(root @ histogram) * self.weights[question.name]"},
        (f"{FINGERPRINT}::test_rule_13_one_patient_moves_the_sum_by_at_most_one[PNG]",)),
    Mutant("the fingerprint gets half of its noise", 13, "privacy/mechanism.py",
        {"add_gaussian_(total, z, generator, terms=4)": "add_gaussian_(total, z / 2, generator, terms=4)"},
        (f"{FINGERPRINT}::test_rule_13_noise_has_the_paid_deviation_on_every_coordinate",)),
    Mutant("a fingerprint's permit is not used up", 13, "privacy/mechanism.py",
        {"z = permit.use(0)": "z = permit.noise_multipliers[0] if permit.noise_multipliers else permit.use(0)"},
        (f"{FINGERPRINT}::test_rule_13_no_noise_without_a_permit_and_none_twice",)),
    Mutant("all sites add the same noise", 13, "federation/noisy_fingerprint.py",
        {'(randomness or SecretRandomness("secure")).noise(site, 0)': "np.random.default_rng(0)"},
        (f"{FINGERPRINT}::test_rule_13_every_site_adds_noise_of_its_own_from_chacha",)),
    Mutant("the event of a fingerprint is not written", 13, "trainers/site_ledger.py",
        {'    ledger.append({**accounting.gaussian(z), "release": release.release}, round_index=0, attempt=0)\n': ""},
        (f"{FINGERPRINT}::test_rule_13_paid_in_ledger_and_odometer_before_there_is_noise",)),
    Mutant("noisy histograms are stored before they are paid for", 13, "federation/noisy_fingerprint.py",
        {"    permit = site_ledger.pay_for_fingerprint(":
         '    atomic_files.write_bytes(stored_file(preprocessed, site, release), b"early", private=True)\n'
         "    permit = site_ledger.pay_for_fingerprint("},
        (f"{FINGERPRINT}::test_rule_13_paid_in_ledger_and_odometer_before_there_is_noise",)),
    Mutant("changed data are answered by the old release", 13, "federation/noisy_fingerprint.py",
        {"content = [state, cohort.digest()": "content = [cohort.digest()"},
        (f"{FINGERPRINT}::test_rule_13_using_it_again_is_free_until_data_or_noise_change",)),
    Mutant("every release has the same name", 13, "federation/noisy_fingerprint.py",
        {'release=f"fingerprint-{secrets.token_hex(4)}"': 'release="fingerprint-0"'},
        (f"{FINGERPRINT}::test_rule_13_using_it_again_is_free_until_data_or_noise_change",)),
    Mutant("a release is used without its payment", 13, "federation/noisy_fingerprint.py",
        {"        site_ledger.check_fingerprint_paid(preprocessed, site, cohort.units(site), release)\n": ""},
        (f"{FINGERPRINT}::test_rule_13_what_was_not_paid_for_or_is_damaged_is_not_used",)),
    Mutant("a new release is paid for although a run needs the plan", 13, "federation/noisy_fingerprint.py",
        {"    asked.before_paying()\n": ""},
        (f"{FINGERPRINT}::test_rule_13_refused_before_it_is_paid_where_a_run_needs_the_plan",)),
    Mutant("the planner counts the cases of all patients", 13, "nnunet_compat/planning.py",
        {'planner.dataset_json = {**planner.dataset_json, "numTraining": declared_cases}': "pass"},
        (f"{FINGERPRINT}::test_planning_looks_at_no_file_and_no_count_of_cases",)),
    Mutant("exact statistics of an earlier pooled plan are kept", 13, "federation/noisy_fingerprint.py",
        {"    examination.note_checked(preprocessed, state)\n": ""},
        (f"{FINGERPRINT}::test_no_exact_number_of_a_patient_is_written",)),
    Mutant("a privacy plan may name a cheaper fingerprint than was paid for", 13, "trainers/site_ledger.py",
        {'if paid is None or paid.get("noise_multiplier") != release.noise_multiplier:': "if False:"},
        (f"{FINGERPRINT}::test_rule_13_a_privacy_plan_cannot_name_a_cheaper_fingerprint",)),
    Mutant("a privacy plan with another fingerprint's event is kept", 13, "experiments/pipeline.py",
        {"fingerprints[0] != fingerprints[1]": "found.fingerprint != planned.fingerprint"},
        (f"{FINGERPRINT}::test_rule_13_a_run_planned_with_noise_has_a_formal_guarantee",)),
    # Rule 11: budget and ledger
    Mutant(
        "forgotten ledger line", 11, "privacy/mechanism.py",
        {"            ledger.append(event, round_index=round_index, attempt=attempt)": "            pass"},
        (f"{LEDGER}::test_rule_11_the_ledger_is_written_before_the_permit_exists",), quick=True,
    ),
    Mutant(
        "the ledger is written after the step", 11, "federation/client.py",
        {
            "    permit = site.mechanism.authorise(\n"
            "        ledger, task.first_step, task.steps, round_index=task.round, attempt=attempt, level=task.noise_level\n"
            "    )\n": (
                "    from nnunet_adpfl.privacy.mechanism import Permit\n"
                "    block = range(task.first_step, task.first_step + task.steps)\n"
                "    permit = Permit({step: site.mechanism.noise_multiplier_at(step) for step in block})\n"
            ),
            "    update = _make_update(": (
                "    site.mechanism.authorise(ledger, task.first_step, task.steps, round_index=task.round, attempt=attempt)\n"
                "    update = _make_update("
            ),
        },
        (f"{CLIENT}::test_rule_11_the_ledger_is_written_before_the_first_step",),
    ),
    Mutant(
        "the ledger is not forced to the disk", 11, "atomic_files.py",
        {"data = data[os.write(descriptor, data) :]\n        os.fsync(descriptor)": "data = data[os.write(descriptor, data) :]"},
        (f"{DETAILS}::test_rule_11_lines_reach_the_disk_before_they_count",),
    ),
    Mutant(
        "the ledger before the odometer", 11, "privacy/ledger.py",
        {
            "        line = hash_chain.sealed(fields, self.content.head)\n": (
                "        line = hash_chain.sealed(fields, self.content.head)\n        hash_chain.append(self.path, line)\n"
            ),
            "odometer.record(line, self.units_digest)\n        hash_chain.append(self.path, line)\n": (
                "odometer.record(line, self.units_digest)\n"
            ),
        },
        (f"{DETAILS}::test_rule_11_the_odometer_is_written_before_the_ledger_and_both_before_the_permit",),
    ),
    Mutant(
        "a ledger that was rewound is accepted", 11, "privacy/odometer.py",
        {"        raise PrivacyRefusedError(\n            f\"{self.path}: the ledger of run": (
            "        return None\n        raise PrivacyRefusedError(\n            f\"{self.path}: the ledger of run"
        )},
        (f"{LEDGER}::test_rule_11_missing_edited_shorter_or_torn_ledgers",), quick=True,
    ),
    Mutant(
        "an odometer that was rewound is accepted", 11, "privacy/odometer.py",
        {'if last["hash"] == ledger.head:': 'if any(line["hash"] == last["hash"] for line in ledger.lines[-2:]):'},
        (f"{DETAILS}::test_rule_11_an_odometer_that_is_one_line_short_is_noticed",),
    ),
    Mutant(
        "an edited line is accepted", 11, "privacy/hash_chain.py",
        {' or line.get("hash") != line_hash(line):': ":"},
        (f"{LEDGER}::test_rule_11_missing_edited_shorter_or_torn_ledgers",),
    ),
    Mutant(
        "a checkpoint newer than the ledger is accepted", 11, "privacy/ledger.py",
        {'if all(line["hash"] != head for line in self.content.lines):': "if False:"},
        (f"{CLIENT}::test_rule_11_a_ledger_older_than_the_servers_checkpoint_is_refused",),
    ),
    Mutant(
        "a torn line is free", 11, "privacy/ledger.py", {
            "    if content.torn is not None:\n        events.append(": "    if False:\n        events.append("
        },
        (f"{LEDGER}::test_rule_11_a_torn_last_line_counts_as_spent",),
    ),
    Mutant(
        "budget check skipped", 11, "privacy/mechanism.py",
        {"        self._check_budget([*ledger.events(), *wanted])\n": ""},
        (f"{LEDGER}::test_rule_11_the_step_beyond_the_budget_is_not_taken_and_not_written",), quick=True,
    ),
    Mutant(
        "the reserve is not priced", 11, "privacy/mechanism.py", {"    if plan.reserve_steps:": "    if False:"},
        (f"{LEDGER}::test_rule_11_noise_is_calibrated_for_steps_and_reserve",),
    ),
    Mutant(
        "too little declared noise is accepted", 11, "privacy/mechanism.py",
        {"        if planned > ready.epsilon:": "        if False:"},
        (f"{LEDGER}::test_rule_11_too_little_declared_noise_is_refused",),
    ),
    Mutant(
        "a repeated round is reported with what it realised", 11, "privacy/ledger.py",
        {"return paid == steps_taken(events) and declared in (None, paid)": "return declared in (None, steps_taken(events))"},
        (f"{TOTALS}::test_rule_11_a_repeated_round_makes_the_target_hold",),
    ),
    Mutant(
        "rounds in falling order hide that the first steps were repeated", 10, "privacy/ledger.py",
        {"and declared in (None, paid)": "and paid >= (declared or 0)"},
        (f"{CLIENT}::test_rule_10_the_first_steps_again_under_falling_rounds_are_not_a_whole_run",),
    ),
    Mutant(
        "a server may take the first steps again and again", 11, "federation/client.py",
        {"if site.mechanism.is_private and task.first_step != before:": "if False:"},
        (f"{CLIENT}::test_rule_15_tasks_that_do_not_fit_are_refused_unpaid[steps that were not reached]",),
    ),
    Mutant(
        "a server may declare more steps than planned", 15, "federation/client.py",
        {"if end > plan.steps or task.declared_steps > plan.steps:": "if end > plan.steps:"},
        (f"{CLIENT}::test_rule_15_tasks_that_do_not_fit_are_refused_unpaid[more declared steps than planned]",),
    ),
    Mutant(
        "a server may send anything as a number", 15, "federation/client.py",
        {"if type(value) is not int or not 0 <= value <= accounting.MOST_STEPS:": "if False:"},
        (f"{CLIENT}::test_rule_15_tasks_that_do_not_fit_are_refused_unpaid[a round that is no number]",),
    ),
    Mutant(
        "a server may ask for single steps", 15, "federation/client.py",
        {"task.steps != min(plan.rounds.local_steps, task.declared_steps - task.first_step)": "task.steps > plan.rounds.local_steps"},
        (f"{CLIENT}::test_rule_15_tasks_that_do_not_fit_are_refused_unpaid[fewer steps than a round has]",),
    ),
    Mutant(
        "a privacy plan may call any nnU-Net plan public", 13, "trainers/site_ledger.py",
        {'if (plan.fingerprint == "pooled" or not noted) and': 'if plan.fingerprint == "pooled" and'},
        (f"{TOTALS}::test_rule_13_a_privacy_plan_cannot_call_a_pooled_plan_public",),
    ),
    Mutant(
        "of one fingerprint with two noises the cheaper counts", 13, "trainers/patient_totals.py",
        {"releases[name] = min(known, event, key=_noise)": "releases[name] = max(known, event, key=_noise)"},
        (f"{TOTALS}::test_rule_13_of_one_fingerprint_with_two_noises_the_dearer_counts",),
    ),
    Mutant(
        "a lost odometer is an empty one", 11, "trainers/patient_totals.py",
        {"if (run, site) not in known.get(name, ()):": "if False:"},
        (f"{TOTALS}::test_rule_11_a_lost_odometer_is_noticed",),
    ),
    Mutant(
        "a renamed site leaves the sum", 11, "trainers/patient_totals.py",
        {"if odometer.path.parent.name not in cohort.sites and odometer.runs():": "if False:"},
        (f"{TOTALS}::test_rule_11_a_site_that_the_cohort_forgot_is_noticed",),
    ),
    Mutant(
        "declarations are not said with the claim", 16, "trainers/site_ledger.py",
        {'"declarations": _declarations(plan),': '"declarations": [],'},
        (f"{TOTALS}::test_rule_16_what_is_declared_is_said_with_the_claim",),
    ),
    Mutant(
        "heads of ledgers commit to the list of patients", 12, "trainers/site_ledger.py",
        {"return secrets.token_hex(16)": 'return "0"'},
        (f"{CLIENT}::test_rule_12_the_head_of_a_ledger_cannot_be_guessed",),
    ),
    Mutant(
        "earlier runs are not added up", 11, "trainers/patient_totals.py",
        {"    largest = [group for group in groups if not any(group < other for other in groups)]":
         "    largest = [frozenset([index]) for group in groups for index in group]"},
        (f"{TOTALS}::test_rule_11_two_runs_on_the_same_patients_add_up",),
    ),
    Mutant(
        "an abandoned run counts with what it spent", 11, "trainers/run_spending.py",
        {'if "training" not in openly and not ledger.went_as_declared(spent, first):': "if False:"},
        (f"{TOTALS}::test_rule_11_an_abandoned_run_counts_as_declared",),
    ),
    Mutant(
        "runs without privacy are left out of the total", 11, "trainers/patient_totals.py",
        {"    if any(not run.is_private for run in runs):\n        return Total(None, delta)\n": ""},
        (f"{TOTALS}::test_rule_11_a_run_without_privacy_leaves_no_bound",),
    ),
    Mutant(
        "runs whose patients cannot be told are left out of the total", 11, "trainers/run_spending.py",
        {'known.get(str(first["units_digest"]), everybody)': 'known.get(str(first["units_digest"]), frozenset())'},
        (f"{TOTALS}::test_a_damaged_split_file_makes_everybody_a_user_of_every_run",),
    ),
    Mutant(
        "runs under filters count with what they realised", 11, "trainers/patient_totals.py",
        {"for run in runs if run.order is None for event": "for run in runs for event",
         "accounting.rdp(events, order) + sum(budgets)": "accounting.rdp(events, order)"},
        (f"{TOTALS}::test_rule_10_runs_under_filters_add_up_by_what_their_filters_allow",),
    ),
    Mutant(
        "a shared fingerprint hides another one", 13, "trainers/patient_totals.py",
        {"        for name, event in run.releases.items():": "        releases.clear()\n        for name, event in run.releases.items():"},
        (f"{TOTALS}::test_rule_13_a_noisy_fingerprint_is_counted_once_for_all_runs_that_used_it",),
    ),
    Mutant(
        "a permit is never used up", 11, "privacy/mechanism.py",
        {"return self.noise_multipliers.pop(step)": "return self.noise_multipliers[step]"},
        (f"{LEDGER}::test_rule_11_no_release_without_a_paid_step",),
    ),
    Mutant(
        "a retried step is not charged", 11, "privacy/mechanism.py",
        {"        for event in wanted:\n            ledger": "        for event in wanted if attempt == 0 else []:\n            ledger"},
        (
            f"{ROUNDS}::test_rule_11_a_retried_round_adds_a_ledger_line",
            f"{CLIENT}::test_rule_11_another_task_for_the_same_round_is_a_new_attempt",
        ),
    ),
    Mutant(
        "an update for other weights is sent again", 11, "federation/stored_update.py",
        {'        "weights": task.weights_hash(),\n': ""},
        (f"{CLIENT}::test_rule_11_another_task_for_the_same_round_is_a_new_attempt",),
    ),
    Mutant(
        "an update that the ledger does not know is sent", 11, "federation/client.py",
        {"if stored is not None and _is_paid(stored, ledger):": "if stored is not None:"},
        (f"{CLIENT}::test_rule_11_without_an_intact_paid_update_the_round_is_paid_again",),
    ),
    Mutant(
        "a finished round is paid again", 11, "federation/client.py",
        {"if stored is not None and _is_paid(stored, ledger):": "if False:"},
        (f"{CLIENT}::test_rule_11_a_finished_round_is_answered_again_byte_for_byte_and_free",),
    ),
    Mutant(
        "a run is started where one lies", 11, "trainers/run_manifest.py", {"    if found:\n": "    if False:\n"},
        (f"{REFUSALS}::test_rule_11_an_existing_run_is_never_started_anew",),
    ),
    Mutant(
        "a changed privacy plan may go on", 11, "trainers/run_manifest.py",
        {"if manifest.plan_hash != plan_hash:": "if False:"},
        (f"{REFUSALS}::test_rule_11_runs_that_cannot_go_on[privacy plan edited]",),
    ),
    Mutant(
        "a ledger without its checkpoint may go on", 11, "trainers/run_folder.py",
        {"if found is None and self.has_ledger():": "if False:"},
        (f"{REFUSALS}::test_rule_11_runs_that_cannot_go_on[ledger without checkpoint]",),
    ),
    Mutant(
        "other patients may go on with a ledger", 11, "privacy/ledger.py",
        {' or first.get("units_digest") != units_digest:': ":"},
        (f"{REFUSALS}::test_rule_11_units_that_changed_cannot_go_on",),
    ),
    Mutant(
        "a checkpoint is written over the last one", 11, "trainers/checkpoint.py",
        {"atomic_files.write_bytes(path, buffer.getbuffer(), private=private)": "path.write_bytes(buffer.getbuffer())"},
        (f"{KILLS}::test_rule_11_a_full_disk_leaves_the_previous_checkpoint_readable",),
    ),
    # Rule 12: what is released
    Mutant(
        "export leaks the digest of the patients", 12, "trainers/release.py",
        {'_LEDGER_SECRETS = ("units_digest", ': "_LEDGER_SECRETS = ("},
        (f"{RELEASE}::test_rule_12_keys_of_released_files_are_listed",),
    ),
    Mutant(
        "export leaks the digest of the cohort", 12, "trainers/release.py",
        {'_PLAN_SECRETS = ("cohort_digest",)': "_PLAN_SECRETS = ()"},
        (f"{RELEASE}::test_rule_12_nothing_that_points_at_a_patient_is_in_any_released_file",),
    ),
    Mutant(
        "export keeps the hash of the plan with the cohort in it", 12, "trainers/release.py",
        {'fields["plan_hash"] = plan_hash': 'fields["plan_hash"] = event["plan_hash"]'},
        (f"{RELEASE}::test_rule_12_nothing_that_points_at_a_patient_is_in_any_released_file",),
    ),
    Mutant(
        "export takes the local log along", 12, "trainers/release.py",
        {"    _release_checkpoint(run, manifest": (
            "    for log in run.rglob('local_log.jsonl'):\n        shutil.copy(log, model)\n    _release_checkpoint(run, manifest"
        )},
        (f"{RELEASE}::test_rule_12_release_has_the_listed_files_alone",),
    ),
    Mutant(
        "export releases the optimizer's state", 12, "trainers/release.py",
        {'"optimizer_state": {},': '"optimizer_state": content["adpfl"],'},
        (f"{RELEASE}::test_rule_12_keys_of_released_files_are_listed",),
    ),
    Mutant(
        "export names the exact number of cases", 12, "trainers/checkpoint.py",
        {'"name", "description",': '"name", "description", "numTraining",'},
        (f"{RELEASE}::test_rule_12_keys_of_released_files_are_listed",),
    ),
    Mutant(
        "losses in the checkpoint", 12, "trainers/checkpoint.py",
        {'"logging": {},': '"logging": {"train_losses": [0.5]},'},
        (f"{RELEASE}::test_rule_12_checkpoint_holds_plain_values_without_losses_or_case_ids",),
    ),
    # Rule 14: across sites
    Mutant(
        "the smallest epsilon of all sites", 14, "privacy/summary.py", {"else max(epsilons)": "else min(epsilons)"},
        (f"{SITES}::test_rule_14_epsilon_is_the_maximum_over_sites",),
    ),
    Mutant(
        "a unit may be at two sites", 14, "cohort.py",
        {"if site_of_unit.setdefault(entry.unit, entry.site) != entry.site:": "if False:"},
        (f"{SITES}::test_rule_14_a_unit_at_two_sites_is_refused",), quick=True,
    ),
    # Rule 15: the trust boundary
    Mutant(
        "checkpoints may execute code", 15, "tensor_files.py",
        {"weights_only=True": "weights_only=False", "        _check_archive(path, size, numpy_scalars)\n": ""},
        (f"{START}::test_rule_15_a_checkpoint_is_read_without_executing_anything",),
    ),
    Mutant(
        "a site accepts another privacy plan", 15, "federation/client.py",
        {"    if task.plan_hash != plan.digest():": "    if False:"},
        (f"{CLIENT}::test_rule_15_tasks_that_do_not_fit_are_refused_unpaid[another privacy plan]",),
    ),
    Mutant(
        "weights that are not finite are accepted", 15, "trainers/checkpoint.py",
        {"        if not bool(torch.isfinite(value).all()):": "        if False:"},
        (f"{CLIENT}::test_rule_15_tasks_that_do_not_fit_are_refused_unpaid[infinite]",),
    ),
    Mutant(
        "updates are averaged unchecked", 15, "federation/aggregation.py",
        {"        _check(update, self._wanted)\n": ""},
        (f"{AGGREGATION}::test_rule_15_updates_that_do_not_fit_are_refused_and_add_nothing",),
    ),
    Mutant("a compressed checkpoint is unpacked", 15, "tensor_files.py",
        {'entry.compress_type != zipfile.ZIP_STORED for': 'False for', 'sum(e.file_size for e in entries) > size': 'False'},
        (f"{FILES}::test_rule_15_initial_weights_that_would_fill_the_memory[compressed]",)),
    Mutant("a checkpoint may name any class", 15, "tensor_files.py",
        {'opcode.name == "GLOBAL" and argument not in allowed': 'False'},
        (f"{FILES}::test_rule_15_initial_weights_that_would_fill_the_memory[balloon]",)),
    Mutant("a checkpoint may have any size", 15, "tensor_files.py",
        {'if most_bytes is not None and size > most_bytes:': 'if False:'},
        (f"{FILES}::test_rule_15_initial_weights_that_would_fill_the_memory[large]",)),
    Mutant("tensors that are larger than their file", 15, "trainers/checkpoint.py",
        {'        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()\n': ''},
        (f"{INSTALL}::test_rule_15_checkpoints_that_are_no_release[stretched]",)),
    Mutant("plans of others may name any function", 15, "nnunet_compat/foreign_plans.py",
        {'return isinstance(name, str) and library.fullmatch(name) is not None': 'return isinstance(name, str)'},
        (f"{FILES}::test_rule_15_plans_of_others_name_classes_of_nnunet_alone",)),
    Mutant("links in an archive are followed", 15, "trainers/release_archive.py",
        {'if kind not in (0, stat.S_IFREG) or entry.flag_bits & 0x1:': 'if False:'},
        (f"{INSTALL}::test_rule_15_links_and_devices",)),
    Mutant("an archive's sizes are believed", 15, "trainers/release_archive.py",
        {'if written > most:': 'if False:'},
        (f"{INSTALL}::test_rule_15_archives_that_adpfl_export_does_not_write[bomb]",)),
    Mutant("names that differ in case overwrite each other", 15, "trainers/release_archive.py",
        {'.casefold()': ''},
        (f"{INSTALL}::test_rule_15_archives_that_adpfl_export_does_not_write[two spellings]",)),
    Mutant("a release's claim is believed", 12, "trainers/installation.py",
        {'    if differing is not None:\n        raise': '    if False:\n        raise'},
        (f"{INSTALL}::test_rule_12_claims_that_do_not_follow_from_the_ledgers",)),
    Mutant("an installed model is overwritten", 15, "trainers/installation.py",
        {'if target.exists() or target.is_symlink():': 'if False:'},
        (f"{INSTALL}::test_an_installed_model_is_never_overwritten",)),
    Mutant("the server averages answers to other tasks", 15, "federation/rounds.py",
        {'if answer.task_digest != digest:': 'if False:'},
        ("federation/test_replayed_updates.py::test_rule_15_the_server_refuses_it_and_averages_the_same_bits",)),
    Mutant("a stored update with a flipped bit is sent", 15, "federation/stored_update.py",
        {'if digest != _digest(content, weights):': 'if False:'},
        ("fuzz/test_readers.py::test_rule_15_damaged_files_are_refused_in_one_line",)),
    Mutant("a torn line that was edited is believed", 11, "privacy/ledger.py",
        {'if pending is not None and pending["event"] in accounting.SPENDING_EVENTS:': 'if False:'},
        (f"{TAMPERED}::test_rule_11_a_line_that_was_edited_and_made_to_look_torn",)),
    Mutant("ledgers are everybody's to read", 12, "atomic_files.py",
        {'os.O_APPEND | os.O_CREAT, 0o600)': 'os.O_APPEND | os.O_CREAT, 0o666)'},
        (f"{MODES}::test_rule_12_what_stays_is_the_owners_and_what_leaves_is_everybodys",)),
    Mutant("folders of sites are everybody's to open", 12, "atomic_files.py",
        {'path.mkdir(mode=0o700, exist_ok=True)': 'path.mkdir(exist_ok=True)'},
        (f"{MODES}::test_rule_12_what_stays_is_the_owners_and_what_leaves_is_everybodys",)),
    Mutant("NaN passes as a number of JSON", 15, "json_files.py",
        {', parse_constant=_refuse_constant': ''},
        (f"{FILES}::test_rule_15_json_that_is_none_is_one_value_error",)),
    Mutant("a case may name a path", 15, "cohort.py",
        {'and not set(case) & set("/\\\\")': ''},
        (f"{FILES}::test_rule_15_names_of_cases_and_data_sets_lead_nowhere",)),
    Mutant("the filter takes a spoilt divergence for zero", 10, "privacy/accounting.py",
        {'return found if math.isfinite(found) and found > 0 else math.inf': 'return max(0.0, found)'},
        (f"{FILTER}::test_rule_10_a_divergence_that_rounding_spoils_is_infinite",)),
    # The fused engine
    Mutant('fused: a layer is left out of the norm', 3, "privacy/gradients/record.py",
        {'_by_unit(self._squares.values())': '_by_unit(list(self._squares.values())[1:])'},
        (f"{FUSED}::test_rule_03_network_agrees_with_the_loop",)),
    Mutant('fused: ghost norms without the cross terms of pixels', 3, "privacy/gradients/weight_gradients.py",
        {'return (fields * sources).sum((1, 2)).clamp(min=0)': 'return (fields * sources).diagonal(dim1=1, dim2=2).sum(1)'},
        (f"{FUSED}::test_rule_03_ghost_norms_in_double_precision",)),
    Mutant('fused: a kernel offset is left out of the ghost norm', 3, "privacy/gradients/weight_gradients.py",
        {'for part in shifted[1:]:': 'for part in shifted[2:]:'},
        (f"{FUSED}::test_rule_03_ghost_norms_in_double_precision",)),
    Mutant('fused: NaN passes as a norm', 5, "privacy/gradients/fused.py",
        {'if not norm < MAX_NORM}': 'if norm > MAX_NORM}'},
        (f"{FUSED}::test_rule_05_gradients_that_are_not_finite_though_the_loss_is",)),
    Mutant('fused: a loss that reaches parameters past the network is not set apart', 3, "privacy/gradients/fused.py",
        {'or self._reaches_parameters():': 'or False:'},
        (f"{FUSED}::test_loss_that_reaches_parameters_past_the_network",)),
    Mutant('fused: a layer used twice counts once', 3, "privacy/gradients/recording.py",
        {'if id(layer) in seen:': 'if False:'},
        (f"{FUSED}::test_what_is_unknown_is_left_to_the_loop_with_one_line",)),
    Mutant("fused: another result than the loop's is accepted at the start", 3, "privacy/gradients/choice.py",
        {'if not error <= TOLERANCE:': 'if error > 1e9:'},
        (f"{CHOICE}::test_rule_03_a_fused_engine_that_differs_is_never_used",)),
    Mutant("fused: the check leaves out single tensors", 3, "privacy/gradients/agreement.py",
        {', _norm_difference(fused, units, own)]': ']'},
        (f"{CHOICE}::test_rule_03_a_fault_of_a_single_tensor_is_noticed",)),
    Mutant("fused: a run that goes on is not checked", 3, "privacy/gradients/choice.py",
        {'    if fault is not None:': '    if fault is not None and earlier is None:'},
        (f"{CHOICE}::test_rule_03_an_earlier_choice_does_not_replace_the_check",)),
    Mutant('fused: half precision is not held to the bound', 6, "privacy/gradients/choice.py",
        {'if not agreement.longest(fused, units) <= _LONGEST:': 'if False:'},
        (f"{CHOICE}::test_rule_06_half_precision_is_held_to_the_bound",)),
    Mutant('fused: norm and sum may be computed in TF32', 6, "privacy/gradients/precision.py",
        {'place.fp32_precision = "ieee"': 'pass'},
        (f"{CHOICE}::test_rule_06_norm_and_sum_know_nothing_of_tf32",)),
    Mutant('fused: norms do not allow for rounding', 3, "privacy/gradients/record.py",
        {'[norm + slack for norm': '[norm + 0 * slack for norm'},
        (f"{ALONE}::test_rule_03_rounding_that_always_goes_one_way",)),
    Mutant('fused: rounding as if its errors were independent', 3, "privacy/gradients/weight_gradients.py",
        {'// product.units + 1) * torch.finfo': '// product.units + 1) ** 0.5 * 3 * torch.finfo'},
        (f"{ALONE}::test_rule_03_rounding_is_bounded_for_all_numbers",)),
    Mutant('fused: ghost norms without the rounding of float64', 3, "privacy/gradients/weight_gradients.py",
        {'.clamp(min=0) + slack': '.clamp(min=0)'},
        (f"{ALONE}::test_rule_03_float64_networks_stay_bounded_too",)),
    Mutant('fused: the norm is rounded by the number of units in a pass', 8, "privacy/gradients/record.py",
        {'[math.sqrt(sum(squares)) for squares in _by_unit(self._squares.values())]': (
            'torch.stack(list(self._squares.values())).sum(0).sqrt().tolist()')},
        (f"{ALONE}::test_rule_08_the_count_changes_by_a_half_whatever_the_clip_norm",)),
    Mutant('fused: whether a unit is refused depends on its company', 5, "privacy/gradients/fused.py",
        {' or used != self._used_outputs': ''},
        (f"{ALONE}::test_rule_05_a_unit_whose_loss_skips_an_output_is_judged_alone",)),
    Mutant('fused: passes are not filled up', 3, "privacy/gradients/fused.py",
        {'capacity = max(1, self._patches_at_once // patches)': 'capacity = len(units)'},
        (f"{ALONE}::test_rule_03_norms_are_the_same_bits_whoever_else_is_drawn",
         f"{ALONE}::test_rule_03_one_more_unit_beside_patches_that_nearly_cancel")),
    Mutant('fused: a pass that is given up leaves something behind', 3, "privacy/gradients/fused.py",
        {"        result = ClippedSum({})\n        while units:": "        result = self._left = ClippedSum({})\n        while units:",
         "        return self._loop.clipped_sum(units, rule)\n\n    def _fused_sum": (
             "        left = self._loop.clipped_sum(units, rule)\n        _merge(left, self._left)\n"
             "        return left\n\n    def _fused_sum")},
        (f"{ALONE}::test_rule_03_units_count_once_where_a_pass_is_given_up_half_way",)),
    Mutant('fused: rows that no window meets are multiplied by zero', 5, "privacy/gradients/weight_gradients.py",
        {'source.narrow(2, 0, min(source.shape[2], met))': 'source.narrow(2, 0, min(source.shape[2], step * half + rows - pad))'},
        (f"{ALONE}::test_rule_05_what_no_window_meets_is_not_multiplied",)),
    Mutant('fused: an engine that rounds units by their company is used', 3, "privacy/gradients/choice.py",
        {'if fused.unsupported is None and agreement.depends_on_others(fused, units):': 'if False:'},
        (f"{CHOICE}::test_rule_03_an_engine_in_which_units_are_rounded_by_their_company_is_never_used",)),
    Mutant('fused: ghost norms in float32', 3, "privacy/gradients/weight_gradients.py",
        {'_by_unit(vectors.double(), units)': '_by_unit(vectors, units)'},
        (f"{FUSED}::test_rule_03_ghost_norms_in_double_precision",)),
    Mutant('fused: a parameter used outside its layer is not noticed', 3, "privacy/gradients/fused.py",
        {'raise UnsupportedError("a parameter is used outside its own layer")': 'pass'},
        (f"{FUSED}::test_what_is_unknown_is_left_to_the_loop_with_one_line",)),
    Mutant('fused: layers stay replaced afterwards', 3, "privacy/gradients/recording.py",
        {'vars(layer.module).pop("forward", None)': 'pass'},
        (f"{FUSED}::test_what_is_unknown_is_left_to_the_loop_with_one_line",)),
    Mutant('fused: the last row of a halved field is lost', 3, "privacy/gradients/weight_gradients.py",
        {'half = -(-field.shape[2] // 2)': 'half = field.shape[2] // 2'},
        (f"{FUSED}::test_rule_03_single_samples_are_halved_without_loss",)),
    Mutant('fused: a norm without the activation after it is not noticed', 3, "privacy/gradients/inverted_norm.py",
        {'raise UnsupportedError("a norm is used without the activation after it")': 'pass'},
        (f"{INVERTED}::test_modules_that_are_used_apart_are_left_to_the_loop",)),
    # Rule 16: initial weights
    Mutant(
        "undeclared initial weights are accepted", 16, "trainers/nnUNetTrainerADP.py",
        {"if weights_digest(self.network) != self.model.initial_digest:": "if False:"},
        (f"{START}::test_rule_16_undeclared_weights_of_stock_nnunet_are_refused",),
    ),
    Mutant(
        "the checkpoint of a private run counts as public", 16, "trainers/private_model.py",
        {'    if "adpfl" in content or': "    if"},
        (f"{START}::test_rule_16_the_checkpoint_of_a_private_run_is_not_public",),
    ),
    Mutant(
        "the release of a private run counts as public", 16, "trainers/private_model.py",
        {" or checkpoints.RELEASE_MARK in content:": ":"},
        (f"{START}::test_rule_16_a_release_is_not_public_either",),
    ),
    Mutant(
        "another file than the declared one is accepted", 16, "trainers/private_model.py",
        {"    if found != declared.sha256:": "    if False:"},
        (f"{START}::test_rule_16_a_file_that_is_not_the_declared_one_is_refused",),
    ),
    Mutant(
        "damaged segmentation layers pass as public weights", 16, "trainers/public_weights.py",
        {"        if not bool(torch.isfinite(value).all()):": "        if False:"},
        (f"{START}::test_rule_16_declared_weights_must_fit_the_network",),
    ),
    Mutant(
        "encoders of other channels pass as public weights", 16, "trainers/public_weights.py",
        {'_HEADS = ".seg_layers."': '_HEADS = "."'},
        (f"{START}::test_rule_16_declared_weights_must_fit_the_network",),
    ),
    Mutant(
        "norm of all coordinates but sum of the masked ones left unclipped", 4, "privacy/gradients/loop.py",
        {
            "            norm = _norm(gradients)": (
                "            norm = _norm([g for g, k in zip(gradients, self._coordinates.values()) if k is None])"
            )
        },
        (f"{MASKS}::test_rule_04_the_norm_that_is_clipped_is_that_of_the_kept_coordinates",), quick=True,
    ),
    Mutant(
        "a masked tensor is summed at other coordinates than declared", 4, "privacy/gradients/loop.py",
        {"gradient.flatten()[kept])": "gradient.flatten()[: kept.numel()])"},
        (f"{MASKS}::test_rule_04_masked_sum_is_the_full_one_at_the_kept_coordinates",), quick=True,
    ),
    Mutant(
        "a resting layer is trained", 4, "trainers/masks.py",
        {"if not any(fnmatchcase(name, glob) for glob in patterns)}": "if patterns}"},
        (f"{MASKS}::test_rule_04_a_resting_layer_gets_neither_gradient_nor_noise_and_wakes_up",), quick=True,
    ),
    Mutant(
        "momentum and weight decay move what rests", 4, "trainers/private_training.py",
        {"            declared_masks.put_back_(self.trained[name], value, kept[name])": "            pass"},
        (f"{MASKED_RUNS}::test_rule_04_coordinates_outside_the_mask_keep_their_values",),
    ),
    Mutant(
        "the whole gradient is clipped but coefficients are summed", 3, "privacy/gradients/loop.py",
        {
            "            norm = _norm(gradients)": (
                "            norm = _norm([p.grad for p in self._trained.values()])"
            )
        },
        (f"{SUBSPACE}::test_rule_03_a_unit_adds_at_most_norm_one_whatever_the_directions_are",),
    ),
    Mutant(
        "the exact sum of the coefficients changes the weights", 4, "trainers/private_training.py",
        {
            "            update = mechanism.release(summed, permit, site, step, self._randomness)": (
                "            exact = {name: value.clone() for name, value in summed.total.items()}\n"
                "            update = mechanism.release(summed, permit, site, step, self._randomness)\n"
                "            update.gradient.update({n: v / mechanism.expected_units(site) for n, v in exact.items()})"
            )
        },
        (f"{SUBSPACE}::test_rule_04_the_coefficients_get_the_noise_and_nothing_else_reaches_the_weights",),
    ),
    Mutant(
        "a method of a comparison changes who is protected", 1, "experiments/comparison/methods.py",
        {"        if section in SAME_FOR_ALL:": "        if False:"},
        (f"{COMPARISON}::test_wrong_settings_are_refused_before_any_run",),
    ),
    Mutant(
        "noise below what epsilon needs passes planning", 8, "federation/privacy_planning.py",
        {"        mechanism.make(plan, folds.ALL)": "        pass"},
        (f"{PLANNED}::test_the_noise_can_be_given_but_not_below_what_epsilon_needs",),
    ),
    Mutant(
        "a filter passes for privacy", 9, "privacy/plan.py",
        {'if self.update_filter.kind != "none" and self.is_private:': "if False:"},
        (f"{FILTERS}::test_a_filter_beside_dp_is_refused",),
    ),
    Mutant(
        "runs of a comparison are unknown to the odometer's check", 11, "trainers/patient_totals.py",
        {' + [f"{COMPARISONS}/*/*/seed_*/{name}" for name in _LEDGERS]': ""},
        (f"{COMPARISON}::test_runs_of_a_comparison_are_known_to_the_odometer",),
    ),
    Mutant(
        "a server optimizer forgets its momentum when a run goes on", 11, "federation/rounds.py",
        {"self._trained_part(self._global), state.server_moments)": "self._trained_part(self._global), None)"},
        (f"{STRATEGIES}::test_rule_11_an_interrupted_run_ends_in_the_same_bits[fedavgm]",),
    ),
    Mutant(
        "a site's own layers are taken from the round that is repeated", 11, "trainers/local_layers.py",
        {"    path = file_of(folder, round_index - 1)": "    path = max(folder.glob('local_layers_after_round_*.pth'))"},
        (f"{STRATEGIES}::test_rule_11_a_repeated_round_starts_from_the_layers_before_it",),
    ),
    Mutant(
        "Adam's correction uses a noise that was not added", 7, "privacy/mechanism.py",
        {"count_noise, gradient_z / expected_units)": "count_noise, z)"},
        (f"{MASKS}::test_rule_07_the_update_says_how_much_noise_it_has",), quick=True,
    ),
)  # fmt: skip
