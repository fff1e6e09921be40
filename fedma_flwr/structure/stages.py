"""`StagePlan`: which groups are matched and which tensors settle at each stage of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

from fedma_flwr.structure.signatures import signature_tensors
from fedma_flwr.structure.spec import PermutationSpec
from fedma_flwr.structure.state_dict_names import RUNNING_MEAN, module_of

LOCAL, RETRAIN, HEAD = "local", "retrain", "head"  # names of stages
GroupsPerStage = int | Literal["all"]


@dataclass(frozen=True)
class PlannedStage:
    """One stage: a server -> clients -> server exchange inside a communication round.

    Parameters
    ----------
    index : int
        Number of the stage, from 0.
    name : {"local", "retrain", "head"}
        What clients do in it: train everything, retrain what is not settled, train the head.
    groups : tuple of str
        Groups matched with what clients send at the end of this stage (empty in the last one).
    settles : tuple of str
        Tensors that are averaged at the end of this stage and frozen from then on.
    uploads : tuple of str
        Tensors that clients send: those that settle, and those needed to match the groups.
    estimates : tuple of str
        Statistics among `settles` that clients estimate anew in this stage, on settled weights.
    """

    index: int
    name: str
    groups: tuple[str, ...]
    settles: tuple[str, ...]
    uploads: tuple[str, ...]
    estimates: tuple[str, ...] = ()

    @property
    def solves_head(self) -> bool:
        """Whether clients send the moments of the head's inputs in place of tensors."""
        return self.name == HEAD and not self.uploads


@dataclass(frozen=True)
class StagePlan:
    """The stages of one communication round.

    Groups are matched in forward order. A tensor settles in the stage that matches its output
    axis if its input axes are fixed or matched by then. If its output axis was matched earlier (a
    later producer of a residual stream) it settles one stage after its last input group, so that
    it was retrained on settled inputs. The head settles last.

    Running statistics say something about the tensor that feeds them, so they settle after it:
    one stage later, in which clients estimate them anew on the averaged weights. There are more
    retrain stages where that is needed for the head to be trained on settled statistics. What
    feeds statistics is the last tensor before them, in the spec's order, with the same units.

    Parameters
    ----------
    stages : tuple of PlannedStage
        The stages in order; the last one is the head stage.
    """

    stages: tuple[PlannedStage, ...]

    @classmethod
    def build(
        cls,
        spec: PermutationSpec,
        groups_per_stage: GroupsPerStage = 1,
        *,
        reestimate_statistics: bool = True,
        solved_head: bool = False,
        averaged_head: bool = False,
    ) -> StagePlan:
        """Plan the stages for a spec.

        Parameters
        ----------
        spec : PermutationSpec
            The model's spec; its groups stand in forward order.
        groups_per_stage : int or "all" (default: 1)
            How many groups are matched in one stage. ``"all"``: all in one stage, then the head.
        reestimate_statistics : bool (default: True)
            Whether running statistics settle one stage after what feeds them, estimated anew; if
            not, they settle with it, as they are.
        solved_head : bool (default: False)
            Whether the head is solved from moments: then all other tensors settle before the last
            stage, in which nothing is trained and no tensor is sent.
        averaged_head : bool (default: False)
            With `solved_head`, whether the trained head goes up as well, with the last groups that
            are matched: the next round's local training begins with its average.

        Raises
        ------
        ValueError
            If `groups_per_stage` is neither a positive number nor ``"all"``.
        """
        names = list(spec.groups)
        if isinstance(groups_per_stage, str) and groups_per_stage == "all":
            step = max(len(names), 1)
        elif isinstance(groups_per_stage, int) and groups_per_stage >= 1:
            step = groups_per_stage
        else:
            raise ValueError(
                f"groups_per_stage was {groups_per_stage!r}; it must be a number >= 1 or 'all'."
            )
        bundles = [tuple(names[i : i + step]) for i in range(0, len(names), step)]
        stages = _stages(spec, bundles, reestimate_statistics, solved_head)
        if solved_head:
            stages[-1] = replace(stages[-1], name=HEAD, uploads=())
        if solved_head and averaged_head and bundles:
            last = len(bundles) - 1
            uploads = tuple(n for n in spec.axes if n in {*stages[last].uploads, *spec.head})
            stages[last] = replace(stages[last], uploads=uploads)
        return cls(tuple(stages))

    @classmethod
    def one_shot(cls, spec: PermutationSpec) -> StagePlan:
        """One exchange: clients train everything, then all groups are matched and all settles.

        Parameters
        ----------
        spec : PermutationSpec
            The model's spec; its groups stand in forward order.
        """
        tensors = tuple(spec.axes)
        return cls((PlannedStage(0, LOCAL, tuple(spec.groups), tensors, tensors),))

    def __len__(self) -> int:
        return len(self.stages)

    def __str__(self) -> str:
        """A line for each stage, below the number of exchanges that a round has."""
        exchanges = f"{len(self)} exchange{'s' * (len(self) > 1)} a round"
        solved = self.stages[-1].solves_head
        return "\n".join([exchanges, *(f"  {_in_words(s, solved)}" for s in self.stages)])

    def __getitem__(self, index: int) -> PlannedStage:
        return self.stages[index]

    def settled_before(self, index: int) -> tuple[str, ...]:
        """Tensors that are frozen during stage `index`."""
        return tuple(name for stage in self.stages[:index] for name in stage.settles)


def _in_words(stage: PlannedStage, solved_head: bool) -> str:
    """What clients do in a stage, what is matched after it, and what settles."""
    head = stage.name == HEAD
    if head:
        does = "sum up the head's moments" if solved_head else "train the head"
    else:
        does = "train everything" if stage.name == LOCAL else "train what has not settled"
    if stage.estimates:
        only = solved_head and not stage.groups  # nothing is left that is trained
        does = "estimate running statistics" if only else f"{does}, estimate running statistics"
    matched = f"; matched: {', '.join(stage.groups)}" if stage.groups else ""
    what = ("solved" if solved_head else "averaged") if head else "settled"
    names = ", ".join(stage.settles) if head else f"{len(stage.settles)} tensors"
    return f"{stage.index} {stage.name}: clients {does}{matched}; {what}: {names}"


def _stages(
    spec: PermutationSpec, bundles: list[tuple[str, ...]], reestimate: bool, solved_head: bool
) -> list[PlannedStage]:
    settles, fed = _settling_stages(spec, bundles)
    while _is_late(spec, settles, fed if reestimate else {}, len(bundles), solved_head):
        bundles = [*bundles, ()]
        settles, fed = _settling_stages(spec, bundles)
    estimated: set[str] = set()
    if reestimate:
        settles.update({name: stage + 1 for name, stage in fed.items()})
        estimated = fed.keys() & set(spec.statistics)
    if bundles and not spec.head and max(settles.values(), default=0) < len(bundles):
        return [_stage(spec, [*bundles, ()], i, settles, estimated) for i in range(len(bundles))]
    bundles = [*bundles, ()]  # nothing is matched in the head stage
    return [_stage(spec, bundles, i, settles, estimated) for i in range(len(bundles))]


def _is_late(
    spec: PermutationSpec,
    settles: Mapping[str, int],
    fed: Mapping[str, int],
    last: int,
    solved_head: bool,
) -> bool:
    """Whether one more stage is needed before the last one, the head's.

    The head is trained, or its moments are taken, on settled statistics; moments are taken on
    settled tensors throughout.
    """
    if fed and max(fed.values()) + 1 >= last:
        return True
    late = (name for name, stage in settles.items() if stage == last and name not in spec.head)
    return solved_head and any(late)


def _stage(
    spec: PermutationSpec,
    bundles: Sequence[tuple[str, ...]],
    index: int,
    settles: Mapping[str, int],
    estimated: Set[str],
) -> PlannedStage:
    settled = tuple(name for name in spec.axes if settles[name] == index)
    needed = {*settled, *_matching_tensors(spec, bundles[index], bundles[:index])}
    last = len(bundles) - 1
    return PlannedStage(
        index=index,
        name=LOCAL if index == 0 else HEAD if index == last else RETRAIN,
        groups=bundles[index],
        settles=settled,
        uploads=tuple(name for name in spec.axes if name in needed),
        estimates=tuple(name for name in settled if name in estimated),
    )


def _settling_stages(
    spec: PermutationSpec, bundles: Sequence[tuple[str, ...]]
) -> tuple[dict[str, int], dict[str, int]]:
    """Stage in which each tensor settles, and in which what feeds the statistics settles.

    The second holds the statistics, and what counts their batches: the tensors without axes in the
    same module. Both settle together.
    """
    last = len(bundles)
    matched_in = {group: index for index, bundle in enumerate(bundles) for group in bundle}
    settles = {name: _settling_stage(spec, name, matched_in, last) for name in spec.axes}
    # What counts the batches of a norm on the output settles with its statistics: with the head.
    norms = {module_of(n) for n in spec.head if n.endswith(RUNNING_MEAN)}
    settles.update({n: last for n, own in spec.axes.items() if not own and module_of(n) in norms})
    fed: dict[str, int] = {}
    for module, (names, feeders) in _fed_modules(spec).items():
        stage = max(settles[name] for name in feeders or names)
        counters = [n for n, axes in spec.axes.items() if module_of(n) == module and not axes]
        fed.update(dict.fromkeys([*names, *counters], stage))
    settles.update(fed)
    return settles, fed


def _fed_modules(spec: PermutationSpec) -> dict[str, tuple[list[str], list[str]]]:
    """Statistics and what feeds them, by module: its inputs, as far as a spec can tell.

    That is the last tensor before them that makes the same units; all of them if none is before.
    """
    makers: dict[frozenset[str], list[str]] = {}
    before: dict[str, list[str]] = {}
    for name, axes in spec.axes.items():
        units = spec.output_groups(name)
        if name in spec.statistics and name not in spec.head:
            before[name] = makers.get(units, [])[-1:]
        elif len(axes) > 1 and units and name not in spec.head:
            makers.setdefault(units, []).append(name)
    modules: dict[str, tuple[list[str], list[str]]] = {}
    for name, feeder in before.items():
        names, feeders = modules.setdefault(module_of(name), ([], []))
        names.append(name)
        feeders.extend(feeder or makers.get(spec.output_groups(name), []))
    return modules


def _settling_stage(spec: PermutationSpec, name: str, matched_in: dict[str, int], last: int) -> int:
    if name in spec.head:
        return last
    outputs = [matched_in[group] for group in spec.output_groups(name)]
    inputs = [matched_in[group] for group in spec.input_groups(name)]
    output = max(outputs, default=-1)
    if outputs and max(inputs, default=-1) <= output:
        return output
    return min(max([output, *inputs]) + 1, last)


def _matching_tensors(
    spec: PermutationSpec, groups: Sequence[str], earlier: Sequence[tuple[str, ...]]
) -> set[str]:
    matched = frozenset(group for bundle in earlier for group in bundle)
    needed: set[str] = set()
    for group in groups:
        needed.update(signature_tensors(spec, group, matched))
        matched |= {group}
    return needed


__all__ = ["HEAD", "LOCAL", "RETRAIN", "GroupsPerStage", "PlannedStage", "StagePlan"]
