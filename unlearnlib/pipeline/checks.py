"""Check a profile as a whole, before any stage runs: each section, and what must fit together.

A rule between sections names those that it reads as its arguments; it runs where they are fine in
themselves, and yields what is wrong.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from inspect import signature
from typing import Any

import torch

from unlearnlib.arena.baselines import BASELINES
from unlearnlib.arena.decoys import DECOYS
from unlearnlib.arena.methods import REFERENCES, entrants
from unlearnlib.data.requests import Classes, Group
from unlearnlib.data.sources import SOURCES, train_counts
from unlearnlib.models import architectures, networks
from unlearnlib.pipeline import parameters, schema
from unlearnlib.pipeline.parameters import BASE, ParameterError, Sections, suggestion
from unlearnlib.pipeline.schema import Keys, Problem
from unlearnlib.pipeline.sections import (
    GKT,
    KINDS,
    Arena,
    Data,
    DeepInversion,
    Detection,
    Draw,
    Empty,
    Ensembles,
    GKTPrior,
    GroupModels,
    Inside,
    League,
    MMNoise,
    OwnModel,
    Study,
)
from unlearnlib.zero_shot.methods import METHODS
from unlearnlib.zero_shot.variants import ROWS, TO_ITS_END

Problems = Iterator[Problem]


def check(profile: str) -> Sections:
    """Return the parameters of a profile, see `parameters.load`, if all of them can be.

    Raises:
        ParameterError: with every problem: the file, the path of the key, its value, what is allowed.
    """
    sections = parameters.load(profile)
    problems = [*_sections(sections), *_between(sections)]
    if problems:
        changed = parameters.changes(profile)
        lines = [
            f"params/{_file(problem, changed, profile)}.yaml: {problem}" for problem in problems
        ]
        raise ParameterError("\n".join(dict.fromkeys(lines)))
    return sections


def _sections(sections: Sections) -> Problems:
    """Yield what is wrong inside sections, and which of them are too many or too few."""
    bare = [name for name, keys in parameters.read(BASE).items() if not keys]
    kinds = dict.fromkeys(bare, Empty) | KINDS
    for name in kinds.keys() - sections.keys():
        yield Problem((name,), f"there is no such section; write `{name}:` with its keys")
    for name, given in sections.items():
        if name not in kinds:
            yield Problem((name,), f"no section has this name{suggestion(name, kinds)}")
        else:
            yield from (p.within(name) for p in schema.check(kinds[name], given)[1])


def _between(sections: Sections) -> Problems:
    """Yield what does not fit together, of sections that are fine in themselves."""
    known = KINDS.keys() & sections.keys()
    read = {name: schema.check(KINDS[name], sections[name])[0] for name in known}
    read["counts"] = _counts(read["data"]) if read.get("data") else None
    for rule in RULES:
        asked = {name: read.get(name) for name in signature(rule).parameters}
        if None not in asked.values():
            yield from rule(**asked)


def _file(problem: Problem, changed: Sections, profile: str) -> str:
    """Name the file that sets the value in question."""
    inside: Any = changed
    for key in problem.keys:
        if not isinstance(inside, dict):
            return profile
        if key not in inside:
            return BASE
        inside = inside[key]
    return profile


# -------------------------------------------------------------------------- between sections


def _split_fits(data: Data) -> Problems:
    yield from _refused(("data",), _split, data)


def _widths_leave_filters(study: Study, group_models: GroupModels, arena_models: Any) -> Problems:
    asked = {("study", "width"): (study.model, study.width)}
    for name, one in group_models.models.items():
        asked["group_models", "models", name, "width"] = (name, one.width)
    asked["arena_models", "width"] = (arena_models.model, arena_models.width)
    for keys, (model, width) in asked.items():
        try:
            with torch.device("meta"):
                architectures.build(model, width=width)
        except ValueError as error:
            yield Problem(keys, str(error), width)


def _classes_are_there(study: Study, data: Data, selection: Any) -> Problems:
    number = len(SOURCES[data.source].classes)
    asked = {("study", "forget_classes"): study.forget_classes}
    for name, request in study.arena_plan.requests.items():
        if isinstance(request, Classes):
            asked["study", "arena_plan", "requests", name] = request
    asked["selection", "forget_label"] = Classes([selection.forget_label])
    for keys, request in asked.items():
        yield from _refused(keys, lambda one: one.check(number), request)
    yield from _among(("study", "labels"), study.labels, range(number), f"classes of {data.source}")


def _groups_fit(study: Study, counts: list[int], selection: Any) -> Problems:
    labels = [label for label in study.labels if label < len(counts)]
    asked = [
        *(("study.coherent_sizes", "coherent", k, n) for n in study.coherent_sizes for k in labels),
        *(("study.random_sizes", "random", None, n) for n in study.random_sizes),
        ("selection.larger.size", "random", None, selection.larger.size),
    ]
    if selection.forget_label < len(counts):
        label = selection.forget_label
        asked.append(("selection.larger.size", "coherent", label, selection.larger.size))
    for path, *group in asked:
        request = Group(*group)
        yield from _refused(tuple(path.split(".")), lambda one: one.check(counts), request)


def _groups_of_the_arena_fit(study: Study, counts: list[int]) -> Problems:
    plan = study.arena_plan
    drawn = sum(counts) if plan.items is None else plan.items
    yield from _at_most(("study", "arena_plan", "items"), drawn, sum(counts))
    for name, request in plan.requests.items():
        if isinstance(request, Group):
            # how many of a class are among the items, nobody knows before they are drawn
            held = [drawn] if request.label is None else counts
            keys = ("study", "arena_plan", "requests", name)
            yield from _refused(keys, lambda one, held=held: one.check(held), request)


def _convex_control_fits(data: Data, counts: list[int], convex_control: Any) -> Problems:
    yield from _at_most(("convex_control", "items"), convex_control.items, sum(counts))
    side = SOURCES[data.source].shape[-1]
    if side % convex_control.pool:
        why = f"does not divide the {side} pixels of a side; give a number that does"
        yield Problem(("convex_control", "pool"), why, convex_control.pool)


def _ladder_is_part_of_the_groups(study: Study, ladder: Any) -> Problems:
    for name in ("labels", "coherent_sizes", "random_sizes"):
        shared = getattr(study, name)
        yield from _among(("ladder", name), getattr(ladder, name), shared, f"study.{name}")


def _scaling_is_part_of_the_groups(study: Study, scaling: Any) -> Problems:
    for name in ("coherent_sizes", "random_sizes"):
        shared = getattr(study, name)
        yield from _among(("scaling", name), getattr(scaling, name), shared, f"study.{name}")


def _steps_are_part_of_the_groups(study: Study, group_models: GroupModels, steps: Any) -> Problems:
    models = list(group_models.models)
    yield from _among(("steps", "spaces"), list(steps.spaces), models, "group_models.models")
    sizes = [*study.coherent_sizes, *study.random_sizes]
    yield from _among(("steps", "ordered_sizes"), steps.ordered_sizes, sizes, "the sizes of groups")
    for space, some in steps.spaces.items():
        keys = ("steps", "spaces", space)
        yield from _among(keys, some or [], sizes, "study.coherent_sizes and random_sizes")


def _retrained_models_have_originals(
    study: Study, group_models: GroupModels, group_retrain: Any
) -> Problems:
    of_compact = _trained(group_models, "compact", study)
    yield from _among(
        ("group_retrain", "seeds"), group_retrain.seeds, of_compact, "the seeds of compact"
    )
    yield from _among(("study", "seeds"), study.seeds, group_retrain.seeds, "group_retrain.seeds")


def _updated_models_are_retrained(
    study: Study, group_models: GroupModels, group_retrain: Any, estimators: Any, steps: Any,
    scaling: Any,
) -> Problems:  # fmt: skip
    """Updates start from originals that are retrained too; one-step rows stand beside the steps."""
    for name, one in {"estimators": estimators, "steps": steps, "scaling": scaling}.items():
        keys = (name, "seeds")
        yield from _among(keys, one.seeds, group_retrain.seeds, "group_retrain.seeds")
    for name, one in {"steps": steps, "scaling": scaling}.items():
        yield from _among((name, "seeds"), one.seeds, estimators.seeds, "estimators.seeds")
    for space in set(steps.spaces) & set(group_models.models):
        there = _trained(group_models, space, study)
        yield from _among(("steps", "seeds"), steps.seeds, there, f"the seeds of {space}")


def _larger_models_are_trained(study: Study, group_models: GroupModels, selection: Any) -> Problems:
    keys, larger = ("selection", "larger"), selection.larger
    models = list(group_models.models)
    yield from _among((*keys, "models"), larger.models, models, "group_models.models")
    for model in set(larger.models) & set(models):
        there = _trained(group_models, model, study)
        yield from _among((*keys, "seeds"), larger.seeds, there, f"the seeds of {model}")
    if "resnet18" in models:
        there = _trained(group_models, "resnet18", study)
        yield from _among(("selection", "seeds"), selection.seeds, there, "the seeds of resnet18")


def _trained(group_models: GroupModels, model: str, study: Study) -> list[int]:
    """Return the seeds of a model of the group study."""
    return group_models.models[model].seeds or study.seeds


def _originals_are_trained(
    train: Any,
    masking: Any,
    mm_noise: MMNoise,
    gkt: GKT,
    gkt_prior: GKTPrior,
    deep_inversion: DeepInversion,
) -> Problems:
    stages = {
        "masking": masking, "mm_noise": mm_noise, "gkt": gkt, "gkt_prior": gkt_prior,
        "deep_inversion": deep_inversion,
    }  # fmt: skip
    for name, one in stages.items():
        yield from _among((name, "seeds"), one.seeds, train.seeds, "train.seeds")
        for key in ("factor_seeds", "branch_seeds"):
            own = getattr(one, key, [])
            yield from _among((name, key), own, one.seeds, f"{name}.seeds")


def _other_classes_are_there(data: Data, study: Study) -> Problems:
    known = range(len(SOURCES[data.source].classes))
    for key in ("development", "reported", "confirmed"):
        keys = ("study", "other_classes", key)
        yield from _among(keys, getattr(study.other_classes, key), known, "the classes")


def _transfers_that_are_judged_are_run(gkt: GKT, stopping: Any, leak: Any) -> Problems:
    for name, one in {"stopping": stopping, "leak": leak}.items():
        yield from _among((name, "seeds"), one.seeds, gkt.seeds, "gkt.seeds")
    keys = ("leak", "looked_at")
    yield from _among(keys, leak.looked_at, list(gkt.variants), "gkt.variants")


def _branches_have_a_state(gkt: GKT) -> Problems:
    if not gkt.start.get("keep_state"):
        why = "the branches go on from the state that this run keeps; give it a keep_state"
        yield Problem(("gkt", "start"), why, gkt.start)


def _names_in_the_arena_are_known(study: Study, arena: Arena) -> Problems:
    cheap, asked = arena.influence.ensemble, arena.influence.methods
    yield from _among(("arena", "influence", "ensemble"), cheap, asked, "arena.influence.methods")
    requests = study.arena_plan.requests
    yield from _named(("arena", "measures", "keep"), arena.measures.keep, requests)
    able = [*arena.baselines, *arena.zero_shot]
    why = "arena.baselines and arena.zero_shot"
    yield from _among(("arena", "sequence", "methods"), arena.sequence.methods, able, why)


def _methods_of_the_arena_have_settings(study: Study, arena: Arena) -> Problems:
    found = []
    for name, given in arena.baselines.items():
        own = {key: value for key, value in given.items() if key != "method"}
        some = _settings(BASELINES[given.get("method", name)].settings, own, study.l2)
        found += [problem.within("arena", "baselines", name) for problem in some]
    for name, one in arena.zero_shot.items():
        some = _settings(METHODS[one.method].settings, one.settings, study.l2)
        found += [problem.within("arena", "zero_shot", name, "settings") for problem in some]
    yield from found
    if not found:
        yield from _refused(("arena",), lambda one: _names_of(one, study.l2), arena)


def _settings(kind: type, given: dict[str, Any], l2: float) -> list[Problem]:
    """Read the settings of a method; λ is that of the study, where they have one."""
    if "l2" in kind.__dataclass_fields__ and "l2" in given:
        return [Problem(("l2",), "is study.l2 here; leave it out", given["l2"])]
    shared = {"l2": l2} if "l2" in kind.__dataclass_fields__ else {}
    return schema.check(kind, shared | given)[1]


def _names_of(arena: Arena, l2: float) -> list[str]:
    """List the names of the models in the arena: references, and methods that take part."""
    taking_part = entrants(
        baselines=arena.baselines,
        zero_shot={name: one.model_dump() for name, one in arena.zero_shot.items()},
        estimators=arena.influence.methods,
        l2=l2,
    )
    return [*REFERENCES, *DECOYS, *taking_part]


def _methods_that_are_shown(
    study: Study, arena: Arena, ensembles: Ensembles, inside: Inside, detection: Detection
) -> Problems:
    try:
        known = _names_of(arena, study.l2)
    except ValueError:  # said already
        return
    yield from _among(("ensembles", "titles"), ensembles.titles, known, "the methods of the arena")
    yield from _among(("inside", "looked_at"), inside.looked_at, known, "the methods of the arena")
    yield from _named(("inside", "keep"), inside.keep, [arena.measures.keep], "as arena.measures")
    there = detection.alternatives
    yield from _among(("detection", "alternatives"), there, known, "the models of the arena")
    yield from _named(("detection", "told"), detection.told, there, "one of the alternatives")
    most = max(study.arena_plan.ensembles.values(), default=0)
    for number in ensembles.counts:
        if number > most:
            why = f"holds {number}; give at most the most of study.arena_plan.ensembles, {most}"
            yield Problem(("ensembles", "counts"), why, ensembles.counts)


def _league_shows_a_request(study: Study, league: League) -> Problems:
    yield from _named(("league", "first"), league.first, study.arena_plan.requests)


def _variants_are_settings(
    mm_noise: MMNoise, gkt: GKT, gkt_prior: GKTPrior, deep_inversion: DeepInversion
) -> Problems:
    changed = {
        ("mm_noise", mm_noise.settings): {"remedies": mm_noise.remedies},
        ("gkt", gkt.settings): gkt.changed(), ("gkt_prior", gkt_prior.settings): gkt_prior.changed(),
        ("deep_inversion", deep_inversion.settings): {"factors": deep_inversion.factors},
    }  # fmt: skip
    for (name, plain), lists in changed.items():
        for key, variants in lists.items():
            for variant, some in variants.items():
                given = parameters.merged(asdict(plain), some)
                for problem in schema.check(type(plain), given)[1]:
                    yield problem.within(name, key, *filter(None, [variant]))


def _attention_layers_are_there(study: Study, gkt: GKT, gkt_prior: GKTPrior) -> Problems:
    try:
        with torch.device("meta"):
            model = architectures.build(study.model, width=study.width)
        known = range(1, len(networks.activation_layers(model)) + 1)
    except ValueError:  # of the width, said already, or of a network that none of them serves
        return
    for name, one in {"gkt": gkt, "gkt_prior": gkt_prior}.items():
        asked = {("settings",): one.settings.attention_layers}
        for key, variants in one.changed().items():
            for variant, some in variants.items():
                asked[key, *filter(None, [variant])] = some.get("attention_layers")
        for keys, layers in asked.items():
            # of another type: said already
            if isinstance(layers, list | tuple) and not _distinct_among(layers, known):
                why = (
                    f"give different layers of {study.model}, from 1 to {len(known)}; null for all"
                )
                yield Problem((name, *keys, "attention_layers"), why, list(layers))


def _distinct_among(values: Any, known: Any) -> bool:
    """Tell whether there are values, all different and among those known."""
    return bool(values) and all(
        value in known and value not in values[:number] for number, value in enumerate(values)
    )


def _own_methods_have_settings(own_model: OwnModel) -> Problems:
    for name, one in own_model.methods.items():
        for problem in schema.check(METHODS[one.method].settings, one.settings)[1]:
            yield problem.within("own_model", "methods", name, "settings")


def _models_that_are_shown_are_trained(train: Any, start: Any, draw: Draw) -> Problems:
    for name, one in {"start": start, "draw": draw}.items():
        if one.seed not in train.seeds:
            why = f"is not among train.seeds: {', '.join(map(str, train.seeds))}"
            yield Problem((name, "seed"), why, one.seed)


def _models_that_answer_are_rows(draw: Draw) -> Problems:
    transfers = [row.name for row in ROWS.values() if row.stage in ("gkt", "gkt_prior")]
    known = [*ROWS, *(f"{name}{TO_ITS_END}" for name in transfers)]
    yield from _among(("draw", "models"), draw.models, known, "the rows of the main table")


def _profiles_that_are_compared_are_there(elsewhere: Any) -> Problems:
    for key in ("here", "there"):
        yield from _named(
            ("elsewhere", key), getattr(elsewhere, key), parameters.profiles(), "a profile"
        )


RULES: tuple[Callable[..., Problems], ...] = (
    _split_fits,
    _widths_leave_filters,
    _classes_are_there,
    _groups_fit,
    _groups_of_the_arena_fit,
    _convex_control_fits,
    _variants_are_settings,
    _attention_layers_are_there,
    _originals_are_trained,
    _other_classes_are_there,
    _branches_have_a_state,
    _transfers_that_are_judged_are_run,
    _ladder_is_part_of_the_groups,
    _scaling_is_part_of_the_groups,
    _steps_are_part_of_the_groups,
    _retrained_models_have_originals,
    _updated_models_are_retrained,
    _larger_models_are_trained,
    _names_in_the_arena_are_known,
    _methods_of_the_arena_have_settings,
    _methods_that_are_shown,
    _league_shows_a_request,
    _own_methods_have_settings,
    _models_that_are_shown_are_trained,
    _models_that_answer_are_rows,
    _profiles_that_are_compared_are_there,
)


# ----------------------------------------------------------------------------------- helpers


@cache
def _split(data: Data) -> list[int]:
    """Count the training items of each class, without reading an image."""
    split = {"validation": data.validation, "test": data.test, "split_seed": data.split_seed}
    return train_counts(data.source, **split)


def _counts(data: Data) -> list[int] | None:
    """Return what `_split` does, None where the sizes do not fit."""
    try:
        return _split(data)
    except ValueError:
        return None


def _refused(keys: Keys, ask: Callable[[Any], Any], value: Any) -> Problems:
    """Yield why a value is refused, if it is; the reason names it."""
    try:
        ask(value)
    except ValueError as error:
        yield Problem(keys, str(error))


def _at_most(keys: Keys, items: int, most: int) -> Problems:
    """Yield a problem where more items are asked for than the training split has."""
    if items > most:
        yield Problem(keys, f"the training split has {most} images; give at most so many", items)


def _among(keys: Keys, values: list, known: Any, where: str) -> Problems:
    """Yield a problem where some values are not among those known."""
    if unknown := [value for value in values if value not in known]:
        hint = suggestion(str(unknown[0]), known) if isinstance(unknown[0], str) else ""
        why = (
            f"holds {unknown[0]!r}, which is not among {where}: {', '.join(map(str, known))}{hint}"
        )
        yield Problem(keys, why, values)


def _named(
    keys: Keys, value: str, known: Any, where: str = "a request of study.arena_plan"
) -> Problems:
    """Yield a problem where a name is none of those known."""
    if value not in known:
        why = f"give {where}: {', '.join(known)}{suggestion(value, known)}"
        yield Problem(keys, why, value)
