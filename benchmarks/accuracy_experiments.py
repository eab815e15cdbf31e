"""What accuracy.py compares: cohorts, how they are planned, and the rows of the ablation."""

from __future__ import annotations

from dataclasses import dataclass, field

BASIC = "local,central,np-fl,dp-fl,adp-fl,paper,paper-dp"
PROJECTION = "projection.dimensions=50;projection.public_gradients=100;projection.refresh_steps=20"
ADAM = "adp-fl:optimizer.name=adam;optimizer.learning_rate=0.003;rounds.optimizer_state=kept"
ABLATION = {
    "percentile-median": "adp-fl:clipping.method=percentile;clipping.quantile=0.5",
    "auto-s": "adp-fl:clipping.method=auto_s",
    "fixed": "adp-fl:clipping.method=fixed",
    "noise-decay": "adp-fl:noise_decay.plateaus=4;noise_decay.final_ratio=0.5",
    "data-driven": "adp-fl:adaptation.kind=data_driven",
    "no-augmentation": "adp-fl:augmentation=none",
    "k1": "adp-fl:patches_per_unit=1",
    "k4": "adp-fl:patches_per_unit=4",
    "no-average": "adp-fl:optimizer.ema_decay=0",
    "tail-average": "adp-fl:optimizer.tail_share=0.5",
    "sparse-update": "adp-fl:optimizer.keep_fraction=0.1",
    "random-mask": "adp-fl:trainable.random_mask=0.25",
    "decoder-first": 'adp-fl:trainable.phases=[{"until": 0.5, "freeze_patterns": ["encoder.*"]}]',
    "encoder-frozen": 'adp-fl:trainable.freeze_patterns=["encoder.*"]',
    "adam": ADAM,
    "adam-uncorrected": f"{ADAM};optimizer.adam_correction=false",
    "momentum": "adp-fl:optimizer.momentum=0.9",
    "fedprox": "adp-fl:rounds.strategy=fedprox",
    "fedavgm": "adp-fl:rounds.strategy=fedavgm;rounds.server_momentum=0.5;rounds.server_learning_rate=0.5",
    "fedadam": "adp-fl:rounds.strategy=fedadam;rounds.server_learning_rate=0.01",
    "fedbn": "adp-fl:rounds.strategy=fedbn",
    "projection": f"adp-fl:{PROJECTION}",
}  # fmt: skip
EPSILONS = {
    f"{base}-eps{epsilon}{name}": f"{base}:epsilon={epsilon}{setting}"
    for epsilon in (1, 3)
    for base in ("dp-fl", "adp-fl")
    for name, setting in (("", ""), ("-lr0.1", ";optimizer.learning_rate=0.1"))  # the tuned rate, and one for more noise
}
BASE = {"ablation": "adp-fl", **dict.fromkeys(("epsilon", "sizes", "sites"), "np-fl,dp-fl,adp-fl")}  # rows beside the variants


@dataclass(frozen=True)
class Cohort:
    """A data set; `cases`, `sites` and `seed` are of made-up ones."""

    number: int
    title: str
    cases: int = 0
    sites: int = 4
    seed: int = 0

    @property
    def folder(self) -> str:
        return f"Dataset{self.number:03d}_{self.title}"


@dataclass(frozen=True)
class Experiment:
    """A cohort to report on, another one to tune on, and how both are planned.

    Attributes:
        plan: options of `adpfl plan` for all cohorts of the experiment.
        methods: rows of the methods table.
        variants: more rows: ``adp-planned`` has the learning rate that the planner chooses without any tuning.
        epsilon_tuning: of the tuning cohort, whose patients are made up or treated as public: about the noise per weight,
            z / (q N), that the reported cohort has at epsilon 8.
        generator: of made-up cohorts, as `adpfl synth` calls it.
        table_of_sites: file of the made-up cohort that says where each patient was scanned, where conversion needs one.
        pretraining_steps: of the public start.
    """

    configuration: str
    reported: Cohort
    tuning: Cohort
    plan: tuple[str, ...]
    methods: str = BASIC
    variants: dict[str, str] = field(default_factory=dict)
    epsilon_tuning: float = 8.0
    generator: str | None = None
    generator_options: tuple[str, ...] = ("--heterogeneity", "0.5")
    table_of_sites: str | None = None
    pretraining_steps: int = 3000
    base_features: int = 8

    @property
    def plans(self) -> str:
        return f"nnUNetPlans_f{self.base_features}"


def _plan(steps: int, patches: int, *others: str) -> tuple[str, ...]:
    return ("--steps", str(steps), "--sampling-rate", "0.25", "--patches-per-patient", str(patches), *others)


EXPERIMENTS = {
    "skin": Experiment(
        "2d", Cohort(60, "SmallSkin", 240), Cohort(61, "SmallSkinTuning", 240, seed=1000),
        _plan(40, 2, "--set", "augmentation=nnunet", "--set", "oversample_foreground=0.33"),
        variants={"adp-planned": "adp-fl:optimizer.learning_rate=0.78"},
        generator="ham10000", generator_options=("--heterogeneity", "0.5", "--size", "48x64"),
    ),
    "hippocampus": Experiment(
        "2d", Cohort(40, "Hippocampus"), Cohort(41, "HippocampusTuning"),
        ("--steps", "200", "--sampling-rate", "0.25"),  # the planner's own for the reported cohort, and the same for the other
        methods="np-fl,dp-fl,stock-dp,adp-fl", epsilon_tuning=46.0,
        variants={
            "adp-planned": "adp-fl:optimizer.learning_rate=0.12",
            "adp-declared": "adp-fl:rounds.weights=declared",
            "adp-auto-s": "adp-fl:clipping.method=auto_s",
            "dp-precision": "dp-fl:rounds.weights=precision",
        },
    ),
    "ct": Experiment(
        "2d", Cohort(52, "KidneyCT", 120), Cohort(53, "KidneyCTTuning", 120, seed=1000), _plan(100, 8),
        methods="np-fl,dp-fl,stock-dp,adp-fl", generator="kits23", table_of_sites="kits23_sites.csv",
        base_features=4,
    ),
    "brain": Experiment(
        "2d", Cohort(54, "BrainMRI", 120), Cohort(55, "BrainMRITuning", 120, seed=1000), _plan(100, 8),
        methods="np-fl,dp-fl,stock-dp,adp-fl", generator="brats2024", base_features=4,
    ),
}  # fmt: skip
WIDTHS = (4, 16)  # features of the first stage, of the reported cohort


def sizes(reported: Cohort) -> list[Cohort]:
    """Made-up cohorts with other numbers of patients at a site (four fifths of these train), and of sites."""
    first, name = 10 * reported.number, reported.title
    by_units = [Cohort(first + k, f"{name}Of{4 * n}", 4 * n, 4, 2000 + k) for k, n in enumerate((31, 63, 125, 250))]
    return by_units + [Cohort(first + 5 + k, f"{name}At{n}", 240, n, 3000 + k) for k, n in enumerate((2, 8))]
