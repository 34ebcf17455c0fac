"""The noise schedules of the official VDM (Kingma et al. 2021) as ours.

    fixed      gamma(t) = gamma_min + (gamma_max - gamma_min) t, which has no parameters
    scalar     gamma(t) = b + |w| t
    monotone   gamma(t) = b_1 + |w_1| t + (1 / n) Σ_j |w_3j| (2 sigmoid(|w_2j| (2 t - 1) + b_2j) - 1)

The last one is our `LearnedSchedule`, m(t) = w_1 t + mean_j w_3j sigmoid(w_2j t + b_j) between its own endpoints, with
2 |w_2|, b_2 - |w_2| and 2 |w_3| in the place of w_2, b and w_3, and gamma(0), gamma(1) as the endpoints: they are not
gamma_min and gamma_max in the original, either.
"""

import torch
from torch import Tensor

from ...io.folders import CheckpointError
from .tensor_map import Tensors

GAMMA = "gamma."
SCALAR, LINEAR = {"w", "b"}, {"l1.kernel", "l1.bias"}  # LINEAR is the monotone network without its nonlinear part
MONOTONE = LINEAR | {"l2.kernel", "l2.bias", "l3.kernel"}
FEATURES = 1024  # sigmoids of the original's monotone network
TINY = 1e-30  # least weight of which the logarithm is taken


def schedule_of(theirs: Tensors, where: str) -> tuple[str, int]:
    """Return the kind of the schedule, "fixed", "scalar" or "monotone", and the number of sigmoids that the last has.

    Raises:
        CheckpointError: the parameters are those of no schedule, or have other shapes.
    """
    found = _parameters(theirs)
    if not found:
        return "fixed", FEATURES
    for kind, names in (("scalar", SCALAR), ("scalar", LINEAR), ("monotone", MONOTONE)):
        if found.keys() == names:
            features = found["l2.bias"].numel() if kind == "monotone" else FEATURES
            _check_shapes(found, features, where)
            return kind, features
    known = "; ".join(", ".join(f"gamma/{name}" for name in sorted(names)) for names in (SCALAR, MONOTONE))
    got = ", ".join(f"gamma/{name}" for name in sorted(found))
    raise CheckpointError(f"{where} must hold the parameters of a schedule, {known}, or none of a fixed one, got {got}")


def schedule_state(theirs: Tensors, where: str) -> dict[str, Tensor]:
    """Return the state of our schedule, float32, computed in float64; empty for a fixed one.

    Raises:
        CheckpointError: as `schedule_of`.
    """
    kind, _ = schedule_of(theirs, where)
    found = {name: tensor.double() for name, tensor in _parameters(theirs).items()}
    if kind == "fixed":
        return {}
    bias, linear = (found[a] if a in found else found[b] for a, b in (("b", "l1.bias"), ("w", "l1.kernel")))
    low, linear = bias.reshape(()), linear.reshape(()).abs()
    state = {"gamma_0": low, "gamma_1": low + linear}
    if kind == "monotone":
        steepness, height = (found[f"{layer}.kernel"].flatten().abs() for layer in ("l2", "l3"))
        bias = found["l2.bias"]
        ends = [(height * (2.0 * torch.sigmoid(bias + sign * steepness) - 1.0)).mean() for sign in (-1.0, 1.0)]
        state = {
            "gamma_0": low + ends[0],
            "gamma_1": low + linear + ends[1],
            "log_linear": _log(linear),
            "log_steepness": _log(2.0 * steepness),
            "bias": bias - steepness,
            "log_height": _log(2.0 * height),
        }
    return {name: tensor.float() for name, tensor in state.items()}


def _parameters(theirs: Tensors) -> dict[str, Tensor]:
    return {name.removeprefix(GAMMA): tensor for name, tensor in theirs.items() if name.startswith(GAMMA)}


def _check_shapes(found: dict[str, Tensor], features: int, where: str) -> None:
    wanted: dict[str, tuple[int, ...]] = {"w": (1,), "b": (1,), "l1.kernel": (1, 1), "l1.bias": (1,)}
    wanted |= {"l2.kernel": (1, features), "l2.bias": (features,), "l3.kernel": (features, 1)}
    for name, tensor in found.items():
        if tuple(tensor.shape) != wanted[name] or not tensor.is_floating_point() or not tensor.numel():
            got = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            raise CheckpointError(f"{where}: gamma/{name} must be floating-point of shape {wanted[name]}, got {got}")


def _log(weight: Tensor) -> Tensor:
    return weight.clamp(min=TINY).log()
