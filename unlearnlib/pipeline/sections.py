"""What the parameter files may hold: every section with its types and ranges.

Settings are the dataclasses of the rooms, so that a rule is written once, beside the code that needs
it. What notebooks ask for beyond them stands here. `checks` reads a profile by these types, and says
what must fit together.
"""

import re
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainValidator,
    create_model,
    model_validator,
)

from unlearnlib.arena import scores, sequence, unlearning
from unlearnlib.arena.baselines import BASELINES
from unlearnlib.arena.methods import Effort
from unlearnlib.arena.plan import Plan
from unlearnlib.data import requests
from unlearnlib.data.requests import Classes
from unlearnlib.data.sources import SOURCES
from unlearnlib.groups import (
    attribution,
    clusters,
    coherence,
    convex_control,
    estimators,
    features,
    ladder,
    scaling,
    selection,
    steps,
)
from unlearnlib.influence.criteria import CRITERIA
from unlearnlib.influence.estimators import ESTIMATORS
from unlearnlib.influence.scale import Rule
from unlearnlib.measures import relearning
from unlearnlib.measures.metrics import METRICS
from unlearnlib.models import architectures
from unlearnlib.models.training import Recipe
from unlearnlib.pipeline import schema
from unlearnlib.pipeline.paths import Place
from unlearnlib.zero_shot import (
    deep_inversion,
    gkt,
    masked_distillation,
    mm_noise,
    read_out,
    stopping,
)
from unlearnlib.zero_shot.methods import METHODS

# ------------------------------------------------------------------------------------- values

Item = TypeVar("Item")


def _distinct(values: list[Item]) -> list[Item]:
    """Refuse a value that is given twice."""
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise ValueError(f"holds {twice[0]!r} more than once; give different values")
    return values


def _file_name(name: str) -> str:
    """Refuse the name of a run that is no plain file name, or that leads out of its folder."""
    if not re.fullmatch(r"\w[\w.+=-]*", name, re.ASCII):
        raise ValueError(
            f"{name!r} cannot name a file: give letters a to z, digits and '_', and '.+=-' after the "
            "first of them"
        )
    return name


Count = Annotated[int, Ge(1)]
Number = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
Width = Annotated[float, Gt(0), Le(16)]
Weight = Annotated[float, Ge(0)]
Inside = Annotated[float, Gt(0), Lt(1)]
Distinct = Annotated[list[Item], MinLen(1), AfterValidator(_distinct)]
Seeds = Distinct[Number]
SomeNumbers = Annotated[list[Number], AfterValidator(_distinct)]  # or none
Sizes = Distinct[Count]
Labels = Distinct[Number]
UNSCALED = [name for name, entry in ESTIMATORS.items() if not entry.scaled]
Architecture = Literal[tuple(architectures.ARCHITECTURES)]
ClassList = Annotated[Any, PlainValidator(Classes)]
Request = Annotated[Any, PlainValidator(requests.parse)]
FileName = Annotated[str, AfterValidator(_file_name)]


class Strict(BaseModel):
    """A section, or a mapping inside one, without a key too many."""

    model_config = ConfigDict(**schema.STRICT)


class Empty(Strict):
    """A section of a notebook that has the shared keys alone."""


def section(name: str, *settings: type, without: tuple[str, ...] = (), **keys: Any) -> type[Strict]:
    """Make a section that holds the fields of settings dataclasses side by side with other keys.

    Args:
        name: of the type.
        settings: the dataclasses; rules across the fields of one hold where none is left out.
        without: fields that parameters do not set here.
        keys: types of the other keys.
    """
    kinds = {}
    for one in settings:
        hints = get_type_hints(one, include_extras=True)
        kinds |= {field: hints[field] for field in one.__dataclass_fields__ if field not in without}

    def together(self: Strict) -> Strict:
        for one in settings:
            if kinds.keys() >= set(one.__dataclass_fields__):
                one(**{field: getattr(self, field) for field in one.__dataclass_fields__})
        return self

    rules = {"together": model_validator(mode="after")(together)}
    fields = {field: (kind, ...) for field, kind in {**kinds, **keys}.items()}
    return create_model(name, __base__=Strict, __validators__=rules, **fields)


# ----------------------------------------------------------------------------------- sections


class ArenaPlan(Strict):
    """See `unlearnlib.arena.plan.Plan`."""

    items: Count | None
    seeds: Annotated[Seeds, MinLen(2)]  # every test of the arena is over them
    other_seeds: Seeds
    ensembles: dict[str, Annotated[int, Ge(1), Le(10_000)]]
    requests: Annotated[dict[FileName, Request], MinLen(1)]

    @model_validator(mode="after")
    def _agrees(self) -> "ArenaPlan":
        self.plan()
        return self

    def plan(self) -> Plan:
        """Make the plan, of a profile that has no files."""
        return Plan(
            Place("none"), **{name: getattr(self, name) for name in type(self).model_fields}
        )


class OtherClasses(Strict):
    """Classes that are forgotten instead, for the rules that stop a transfer."""

    development: Labels
    reported: Labels
    confirmed: SomeNumbers


class Study(Strict):
    """What the notebooks share."""

    model: Architecture
    width: Width
    seeds: Seeds
    forget_classes: ClassList
    other_classes: OtherClasses
    workers: Count
    engine: Literal["loky", "dask"]
    labels: Labels
    coherent_sizes: Sizes
    random_sizes: Sizes
    l2: Weight
    damping: Weight
    arena_plan: ArenaPlan


class Data(Strict):
    """See `unlearnlib.data.sources.make_splits`."""

    source: Literal[tuple(SOURCES)]
    validation: Count
    test: Count | None
    split_seed: Number


Train = section("Train", Recipe, without=("l2", "average"), seeds=Seeds)


class Masking(Strict):
    """Settings of the methods of the notebook that have some."""

    seeds: Seeds
    random_embeddings: read_out.Embeddings
    masked_distillation: masked_distillation.Settings


class Start(Strict):
    """What the tour takes: one model, one method, and how models learn again."""

    seed: Number
    masked_distillation: masked_distillation.Settings
    relearning: relearning.Settings


Variants = Annotated[dict[FileName, dict[str, Any]], MinLen(1)]


class MMNoise(Strict):
    """Settings of the plain method, and what each remedy changes in them."""

    seeds: Seeds
    settings: mm_noise.Settings
    remedies: Variants
    factor_seeds: SomeNumbers

    @model_validator(mode="after")
    def _remedies_are_apart(self) -> "MMNoise":
        owner: dict[str, str] = {}
        for name, changes in self.remedies.items():
            for key in changes:
                if (other := owner.setdefault(key, name)) != name:
                    raise ValueError(
                        f"the remedies {other} and {name} both set {key!r}, so that neither could be "
                        "left out alone; let one of them set it"
                    )
        return self


class GKTPrior(Strict):
    """Settings of transfers, what variants and factors change in them, and how they are stopped."""

    seeds: Seeds
    settings: gkt.Transfer
    variants: Variants
    factors: Variants
    factor_seeds: SomeNumbers
    stop: stopping.Stop

    def changed(self) -> dict[str, dict[str, dict[str, Any]]]:
        """List what is changed in the settings, by key and name of the run."""
        return {"variants": self.variants, "factors": self.factors}


class GKT(GKTPrior):
    """The same, with other classes, and branches that go on from a state that was kept."""

    start: dict[str, Any]
    branches: Variants
    branch_seeds: SomeNumbers

    def changed(self) -> dict[str, dict[str, dict[str, Any]]]:
        """List what is changed in the settings, see the base."""
        return super().changed() | {"start": {"": self.start}, "branches": self.branches}


class DeepInversion(Strict):
    """Settings, numbers of images, and what each factor changes at one of them."""

    seeds: Seeds
    settings: deep_inversion.Settings
    per_class: Sizes
    factors_at: Count
    factors: Variants
    factor_seeds: SomeNumbers

    @model_validator(mode="after")
    def _has_factors(self) -> "DeepInversion":
        if self.factors_at not in self.per_class:
            raise ValueError(
                f"factors_at={self.factors_at} with per_class={self.per_class}: a factor is compared "
                "with the whole method at as many images, so give one of these numbers"
            )
        return self


class Trained(Strict):
    """An architecture of group unlearning: its width, its recipe but for λ, and its seeds."""

    seeds: Seeds | None = None
    width: Width
    epochs: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(2)]
    learning_rate: Positive
    average: Annotated[float, Ge(0), Lt(1)] = 0.0


class Longer(Strict):
    """Another recipe for the compact network, to compare: its epochs, and what goes with them."""

    epochs: Annotated[int, Ge(1)]
    learning_rate: Positive
    average: Annotated[float, Ge(0), Lt(1)] = 0.0


class Comparison(Strict):
    """The seeds of the originals, and a margin for the tests of equivalence."""

    seeds: Seeds
    margin: Positive


class Stopping(Strict):
    """The runs on which stopping rules are judged."""

    seeds: Seeds


class Leak(Strict):
    """The transfers that are looked into."""

    seeds: Seeds
    looked_at: Distinct[str]
    looks: Annotated[int, Ge(2)]
    images: Count
    levels: Distinct[Annotated[float, Gt(0), Lt(100)]]


class GroupModels(Strict):
    """The models of group unlearning; compact is the main one."""

    models: dict[Architecture, Trained]
    longer: Longer

    @model_validator(mode="after")
    def _has_the_main_one(self) -> "GroupModels":
        if "compact" not in self.models:
            raise ValueError(f"models={list(self.models)}: give compact too, the main one")
        return self


class GroupRetrain(Strict):
    """The repeats: originals that are retrained."""

    seeds: Seeds


Estimators = section(
    "Estimators", estimators.Settings, seeds=Seeds, estimators=Distinct[Literal[tuple(UNSCALED)]]
)
Steps = section(
    "Steps", steps.Settings, seeds=Seeds, spaces=dict[Architecture, Sizes | None], margin=Positive
)
Scaling = section(
    "Scaling", scaling.Settings, seeds=Seeds, coherent_sizes=Sizes, random_sizes=Sizes
)
Features = section("Features", features.Settings, pretrained=str | None)
Ladder = section(
    "Ladder",
    ladder.Settings,
    labels=Labels,
    coherent_sizes=Sizes,
    random_sizes=Sizes,
    unconverged_limit=Annotated[float, Ge(0), Le(1)],
)
ConvexControl = section("ConvexControl", convex_control.Settings, stronger_l2=Positive)
Attribution = section("Attribution", attribution.Parts, attribution.Settings)
Larger = section(
    "Larger",
    selection.LargerSettings,
    without=("l2",),
    models=Distinct[Architecture],
    seeds=Seeds,
    size=Count,
)
Selection = section(
    "Selection",
    selection.Settings,
    Rule,
    without=("l2", "rule"),
    seeds=Seeds,
    margin=Positive,
    forget_label=Number,
    criteria=Distinct[Literal[tuple(CRITERIA)]],
    ratios=Distinct[Annotated[float, Gt(0), Le(1)]],
    larger=Larger,
)


class GroupComparison(Strict):
    """The level of its tests."""

    level: Inside


ArenaModels = section(
    "ArenaModels",
    Recipe,
    without=("l2", "weight_decay", "shift_pixels", "average"),
    model=Architecture,
    width=Width,
    curvature_items=Count,
)


class Entrant(Strict):
    """A zero-shot method under a name of its own; its settings are read as its own class."""

    method: Literal[tuple(METHODS)]
    settings: dict[str, Any]
    effort: Effort = "usual"


class ArenaInfluence(Strict):
    """The estimators of the arena, those of them that are cheap, and what they share."""

    methods: Distinct[Literal[tuple(ESTIMATORS)]]
    ensemble: list[Literal[tuple(ESTIMATORS)]]
    settings: section("Influence", unlearning.Influence, without=("l2", "damping"))


class Sequence(Strict):
    """Classes that go one after the other, and by which methods."""

    classes: Annotated[Labels, MinLen(2)]
    methods: Distinct[str]


class Shown(Strict):
    """The metrics in the figure of sequences."""

    shown: Distinct[Literal[sequence.MEASURED]]


class Arena(Strict):
    """The methods of the arena, and what is measured of them."""

    retained_items: Count
    baselines: dict[FileName, dict[str, Any]]
    zero_shot: dict[FileName, Entrant]
    influence: ArenaInfluence
    sequence: Sequence
    measures: section("Measures", scores.Settings, keep=str)

    @model_validator(mode="after")
    def _baselines_are_known(self) -> "Arena":
        for name, given in self.baselines.items():
            try:
                BASELINES[given.get("method", name)]
            except KeyError as error:
                raise ValueError(f"baselines: {error.args[0]}") from None
        return self


class Ensembles(Strict):
    """Numbers of models, and the methods that are shown."""

    counts: Distinct[Annotated[int, Ge(2)]]
    draws: Annotated[int, Ge(2)]
    titles: Distinct[str]


class Detection(Strict):
    """Models that are known not to be gold, and how measures are asked to tell them."""

    alternatives: Distinct[str]
    told: str
    counts: Distinct[Annotated[int, Ge(2)]]
    draws: Annotated[int, Ge(2)]
    level: Inside
    wanted_power: Inside


class Inside(Strict):
    """The models that are looked into, and how."""

    keep: str
    looked_at: Distinct[str]
    pictures: Count
    synthesis: deep_inversion.Synthesis
    points: Count


class League(Strict):
    """Margins by metric, and how tests are made."""

    margins: Annotated[dict[Literal[tuple(METRICS)], Positive], MinLen(1)]
    level: Annotated[float, Gt(0), Lt(1)]
    wanted_power: Annotated[float, Gt(0), Lt(1)]
    first: str


class Normalise(Strict):
    """What a network's images were standardised with, by channel."""

    mean: Annotated[list[float], MinLen(1)]
    std: Annotated[list[Positive], MinLen(1)]


class OwnEntrant(Strict):
    """A zero-shot method; its settings are read as its own class."""

    method: Literal[tuple(METHODS)]
    settings: dict[str, Any]


class Example(Strict):
    """How the example of a model of one's own is trained."""

    epochs: Count
    rate: Positive
    batch_size: Annotated[int, Ge(2)]


class OwnModel(Strict):
    """A trained classifier of a reader's own."""

    checkpoint: str | None
    factory: str
    arguments: dict[str, Any]
    shape: tuple[Count, Count, Count]
    num_classes: Annotated[int, Ge(2)]
    normalise: Normalise | None
    forget_classes: ClassList
    images: str | None
    seed: Number
    methods: Annotated[dict[FileName, OwnEntrant], MinLen(1)]
    probe: deep_inversion.Synthesis
    example: Example

    @model_validator(mode="after")
    def _fits(self) -> "OwnModel":
        self.forget_classes.check(self.num_classes)
        lengths = {len(self.normalise.mean), len(self.normalise.std)} if self.normalise else set()
        if lengths - {self.shape[0]}:
            raise ValueError(
                f"normalise has {sorted(lengths)} channels with shape={list(self.shape)}: give a mean "
                f"and a std for each of the {self.shape[0]}"
            )
        return self


class Elsewhere(Strict):
    """The two profiles whose findings stand side by side."""

    here: str
    there: str


class Machine(Strict):
    """Where the page of costs and faults reads what was measured."""

    folder: str


class Draw(Strict):
    """The models that answer a drawing, and how they learn again; see `unlearnlib.report.draw`."""

    seed: Number
    images: Count
    models: Distinct[str]
    relearning: relearning.Settings

    @model_validator(mode="after")
    def _has_the_references(self) -> "Draw":
        if absent := {"original", "retrain"} - set(self.models):
            raise ValueError(f"models lacks {sorted(absent)}, with which the others are compared")
        return self


# a section that is `{}` in base.yaml, of a notebook that shares keys alone, need not be listed
KINDS: dict[str, type] = {
    "study": Study,
    "data": Data,
    "train": Train,
    "start": Start,
    "masking": Masking,
    "mm_noise": MMNoise,
    "gkt": GKT,
    "gkt_prior": GKTPrior,
    "deep_inversion": DeepInversion,
    "evaluation": Empty,
    "comparison": Comparison,
    "gkt_curves": Empty,
    "stopping": Stopping,
    "leak": Leak,
    "group_models": GroupModels,
    "group_retrain": GroupRetrain,
    "estimators": Estimators,
    "steps": Steps,
    "scaling": Scaling,
    "features": Features,
    "coherence": coherence.Settings,
    "clusters": clusters.Settings,
    "ladder": Ladder,
    "convex_control": ConvexControl,
    "selection": Selection,
    "group_comparison": GroupComparison,
    "attribution": Attribution,
    "arena_models": ArenaModels,
    "arena": Arena,
    "ensembles": Ensembles,
    "detection": Detection,
    "sequence": Shown,
    "inside": Inside,
    "league": League,
    "own_model": OwnModel,
    "draw": Draw,
    "elsewhere": Elsewhere,
    "machine": Machine,
}
