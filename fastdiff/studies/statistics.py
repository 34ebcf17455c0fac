"""What the verdicts of studies rest on."""


def critical(freedom: int) -> float:
    """Two-sided 95 % point of Student's t, by the expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5)."""
    z = 1.959964
    first, second = (z**3 + z) / 4.0, (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0
    return z + first / freedom + second / freedom**2
