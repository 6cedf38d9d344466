"""The costs of a model's stages, read off the graphs that tinygrad builds for them; nothing is computed.

A stage is traced on one example of its input. Every sum or maximum in its graph becomes a buffer that the
backward pass reads again (a maximum's with as many counts of ties); everything between them is fused and
costs nothing. So convolutions, norms, embeddings, attention and what a user's task builds are treated alike.
"""

from math import prod

from tinygrad import nn
from tinygrad.dtype import dtypes
from tinygrad.nn.state import get_state_dict
from tinygrad.tensor import Tensor
from tinygrad.uop import GroupOp, Ops
from tinygrad.uop.ops import UOp

from hedgerow.core.costs import FLOAT_BYTES, ModelCosts, StageCost
from hedgerow.runtime.model import Model
from hedgerow.runtime.stages import Stage, Stages, unchanged
from hedgerow.runtime.tasks import build_network


def model_costs(model: Model) -> ModelCosts:
    """Return what the model's stages cost per example. Must run in the thread that owns tinygrad."""
    network = build_network(model.task)
    for tensor in get_state_dict(network).values():
        # In place of the initial values, whose own graphs would be counted.
        tensor.replace(Tensor.empty(*tensor.shape, dtype=tensor.dtype))
    stages = Stages.of(network)
    layers = model.manifest.layers
    x = _plain(stages.layout(Tensor.empty(1, *model.task.input_shape)))
    found = []
    for number, stage in enumerate(stages.stages):
        own = tuple(layer for layer in layers if stages.of_unit(layer) == number)
        cost, output = _stage_cost(stage, own, x)
        found.append(cost)
        x = _plain(output)
    example_bytes = FLOAT_BYTES * prod(model.task.input_shape)
    return ModelCosts(model.manifest, tuple(found), example_bytes, _target_bytes(model, x))


def _plain(x: Tensor) -> Tensor:
    """Return a tensor of the same shape that comes from nowhere."""
    return Tensor.empty(*x.shape, dtype=x.dtype)


def _target_bytes(model: Model, output: Tensor) -> int:
    """Return one target's bytes: a class, or as many values as the model puts out."""
    values = 1 if model.task.target_dtype.kind == "i" else _size(output.uop)
    return values * model.task.target_dtype.itemsize


def _stage_cost(stage: Stage, layers: tuple[str, ...], x: Tensor) -> tuple[StageCost, Tensor]:
    """Return a stage's costs, and its output."""
    inner = stage.layer(x)
    output = inner if stage.after is unchanged else stage.after(inner)
    nodes = _depending(output.uop, x.uop)
    ties = sum(_size(node) for node in nodes if _is_maximum(node))
    made = 0 if output is inner else _size(inner.uop)
    cost = StageCost(
        stage.name or "network",
        layers,
        input_bytes=FLOAT_BYTES * _size(x.uop),
        output_bytes=FLOAT_BYTES * _size(output.uop),
        inner_bytes=FLOAT_BYTES * sum(_kept(nodes, output.uop)),
        mflop=sum(_operations(node) for node in nodes) / 1e6,
        scratch_bytes=FLOAT_BYTES * (made + ties + _expanded(stage, nodes, x.uop)),
        own_output=ties > 0,
        shared=not _is_plain_linear(stage, x),
    )
    return cost, output


def _depending(output: UOp, source: UOp) -> list[UOp]:
    """Return the nodes between a stage's input and its output, in the order of use."""
    found = []
    touched = {source}
    for node in output.toposort():
        if any(part in touched for part in node.src):
            touched.add(node)
            found.append(node)
    return found


def _size(node: UOp) -> int:
    return prod(int(size) for size in node.shape)


def _is_maximum(node: UOp) -> bool:
    return node.op is Ops.REDUCE and node.arg[0] is Ops.MAX


def _is_plain_linear(stage: Stage, x: Tensor) -> bool:
    """Whether each parameter is used once for an example."""
    return type(stage.layer) is nn.Linear and x.ndim == 2  # noqa: PLR2004 - examples, features


def _kept(nodes: list[UOp], output: UOp) -> list[int]:
    """Return the sizes of the sums that stay for the backward pass, without the output itself."""
    sizes = [_size(node) for node in nodes if node.op is Ops.REDUCE]
    if sizes and sizes[-1] == _size(output):
        sizes.pop()
    return sizes


def _operations(node: UOp) -> int:
    """Return how often a node calculates: once for each value, a sum once for each value summed."""
    if not dtypes.is_float(node.dtype):
        return 0
    if node.op is Ops.REDUCE:
        return _size(node.src[0])
    return _size(node) if node.op in GroupOp.ALU else 0


def _expanded(stage: Stage, nodes: list[UOp], source: UOp) -> int:
    """Return by how much the largest gradient on the way back exceeds that of the stage's input.

    What was used several times gets its gradient as a sum of its own. A convolution's comes from a transposed
    convolution (`edge_node.lean`), and a linear layer's or a norm's from sums of the input's size.
    """
    if type(stage.layer) in {nn.Conv2d, nn.Linear, nn.GroupNorm}:
        return 0
    used_often = [_size(node.src[0]) for node in nodes if node.op is Ops.EXPAND]
    return max([_size(source), *used_often]) - _size(source)
