"""The table of bits per dimension that ``evaluate`` and ``train`` print."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation import Evaluation, OdeBound

TABLE_HEAD = f"{'T':>8}  {'bits/dim':>9}  {'± s.e.':>7}  {'recon':>8}  {'prior':>8}  {'diffusion':>9}"


def format_row(evaluation: "Evaluation") -> str:
    """Return a line of the table: bits per dimension, its standard error, and its three terms."""
    row = evaluation.row()
    T = "inf" if row["T"] is None else str(row["T"])
    terms = f"{row['recon']:8.4f}  {row['prior']:8.4f}  {row['diffusion']:9.4f}"
    return f"{T:>8}  {row['bpd']:9.4f}  {row['se']:7.4f}  {terms}"


def format_groups(error: float, values: list[float], kind: str) -> str:
    """Return the line below a row: the standard error over groups of images, and the range of their bits/dim."""
    low, high = min(values), max(values)
    return f"{'':8}  {'':9}  {error:7.4f}  over {len(values)} {kind}, {low:.4f} to {high:.4f} bits/dim"


def format_ode_row(mean: float, error: float, bound: "OdeBound", draws: int) -> str:
    """Return the line of a bound through the probability-flow ODE, which has no terms, with its kind."""
    exact = bound.divergence == "exact"
    divergence = "exact divergence" if exact else f"{bound.probes} {'probe' if bound.probes == 1 else 'probes'}"
    steps = f"{bound.steps} step{'s' * (bound.steps > 1)}"
    kind = f"{steps}, {bound.dequantization}, K = {bound.samples}, {divergence}, draws = {draws}"
    return f"{'ODE':>8}  {mean:9.4f}  {error:7.4f}  {'':8}  {'':8}  {'':9}  ODE, {kind}"
