"""Values that are wrong for an argument, by what the argument must be."""

from typing import Any

import torch

NAN, INF = float("nan"), float("inf")
X = torch.zeros(2, 4, 3, 3)
CPU = {"complex": X.to(torch.complex64), "bool": X.bool(), "double": X.double()}

NO_NUMBER: list[Any] = ["1", [], {}, 1j, object(), X]
NO_INTEGER = [*NO_NUMBER, 1.5, NAN, INF, True]
COUNT = [*NO_INTEGER, None, -1, -(2**70)]  # an integer >= 0
POSITIVE = [*COUNT, 0]  # an integer >= 1
SEED = [*COUNT, 2**64]
REAL = [*NO_NUMBER, NAN, INF, -INF]  # a finite number
POSITIVE_REAL = [*REAL, -1.0, 0.0]
PROBABILITY = [*REAL, -0.1, 1.5, 2**70]
CHOICE: list[Any] = ["x", "", 3, [], NAN]  # one of some strings
FLAG: list[Any] = ["yes", 1, 0.0, None, []]
DATA = [None, 3, "x", [1.0], *CPU.values(), X.to(torch.uint64), X.long(), X.sum()]  # float data [B, ...]
LIKE = [*DATA[1:], X[..., :2], X[:1], X.to("meta"), X.half()[:, :1]]  # float data like X
PER_SAMPLE = [None, 1.0, "x", [1.0, 1.0], X, torch.zeros(3), torch.zeros(2).double(), torch.zeros(2).to("meta")]
NOISE = [3, "x", 1.0, [0], X[..., :2], X.to("meta"), X.to(torch.complex64)]
IMAGES = [
    None, 3, "x", [[1]], torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8).bool(), torch.zeros(2, 1, 8, 8).long(),
    torch.zeros(2, 8, 8).byte(), torch.zeros(2, 8, 8, 1).byte(), torch.zeros(2, 3, 8, 8).byte(),
    torch.full((2, 1, 8, 8), 17).byte(), torch.zeros(2, 1, 8, 8).to(torch.complex64),
]  # fmt: skip
LABELS = [  # int64 [2] of ten classes
    3, "x", [1, 2], torch.zeros(2), torch.zeros(2).bool(), torch.zeros(2).to(torch.complex64), torch.zeros(3).long(),
    torch.zeros(1).long(), torch.zeros(0).long(), torch.zeros(2, 1).long(), torch.tensor([-1, 0]),
    torch.tensor([0, 2**62]), torch.tensor([2**63, 0], dtype=torch.uint64), torch.tensor([0, 99]),
]  # fmt: skip
LABELS_OF_SAMPLES = [  # an integer, or integers [2]
    -1, 10, 2**63, "x", 1.5, NAN, True, 1j, [1], [1, 2, 3], [0, 10], [0.5, 1.5], [[1, 2]], ["a", "b"],
    torch.tensor([1.0, 2.0]), torch.tensor([True, False]), torch.tensor([2**64 - 1, 0], dtype=torch.uint64),
    torch.tensor([1 + 1j, 0]), [2**64, 0], object(),
]  # fmt: skip
DEVICE: list[Any] = ["gpu", "cuda:99", "cuda:-1", "", "x" * 1000, "cpu:x", 1.5, [], "meta"]
PATH: list[Any] = ["", "no/such/path", "x" * 300, "a\0b", "/dev/null", "/dev/null/x", "/proc/self/mem", "\ud800"]
