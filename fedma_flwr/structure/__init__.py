"""What a model's axes mean: permutation specs, stages and resizing."""

from fedma_flwr.structure.axes import AxisExpression, SpecError, UnsupportedModelError
from fedma_flwr.structure.derive import derive_spec
from fedma_flwr.structure.linear_heads import LinearHead, linear_head
from fedma_flwr.structure.output_heads import has_several_heads
from fedma_flwr.structure.proving.prove import SpecProof, prove_spec
from fedma_flwr.structure.resizing import resize
from fedma_flwr.structure.sequential import sequential_spec
from fedma_flwr.structure.signatures import set_signature, signature, signature_tensors
from fedma_flwr.structure.spec import PermutationSpec, StateDict
from fedma_flwr.structure.spec_cache import cached_spec
from fedma_flwr.structure.stages import GroupsPerStage, PlannedStage, StagePlan
from fedma_flwr.structure.unit_groups import UnitGroup
from fedma_flwr.structure.wrapped_models import under_names

__all__ = [
    "AxisExpression",
    "GroupsPerStage",
    "LinearHead",
    "PermutationSpec",
    "PlannedStage",
    "SpecError",
    "SpecProof",
    "StagePlan",
    "StateDict",
    "UnitGroup",
    "UnsupportedModelError",
    "cached_spec",
    "derive_spec",
    "has_several_heads",
    "linear_head",
    "prove_spec",
    "resize",
    "sequential_spec",
    "set_signature",
    "signature",
    "signature_tensors",
    "under_names",
]
