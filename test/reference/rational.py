"""Writes test/fixtures/rational.json: the rational function of orders (6, 5) that approximates GELU on [-3, 3].

    Ra(x) = (sum_{j=0..6} a_j x^j) / (1 + |sum_{i=1..5} b_i x^i|)

GELU(x) = x/2 + x/2 erf(x / sqrt 2): one half is odd and linear, the other even. So b_1 = b_3 = b_5 = 0 and an even
rational function E(x) of orders (6, 4) for the second half is enough; the first half, x/2 times the denominator, gives
a_1, a_3 and a_5. b_2 and b_4 come out positive, so that the absolute value never bends the curve.
Least squares: Sanathanan-Koerner (linear, divided by the previous denominator), then Gauss-Newton on the true error.
Outside [-3, 3] the fit grows like 0.057 x^2: it is an activation for numbers of moderate size.
"""

import torch

from common import FIXTURES, write_json


def gelu(x):
    return torch.nn.functional.gelu(x)  # exact, by erf


def rational(x, numerator, denominator):
    p = sum(a * x**j for j, a in enumerate(numerator))
    q = sum(b * x ** (i + 1) for i, b in enumerate(denominator))
    return p / (1 + q.abs())


def fit() -> tuple[list[float], list[float]]:
    x = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    even = gelu(x) - x / 2
    p_basis = torch.stack([x**0, x**2, x**4, x**6], 1)
    q_basis = torch.stack([x**2, x**4], 1)
    q = torch.ones_like(x)
    for _ in range(50):  # Sanathanan-Koerner
        rows = torch.cat([p_basis, -even[:, None] * q_basis], 1) / q[:, None]
        c = torch.linalg.lstsq(rows, (even / q)[:, None]).solution[:, 0]
        q = 1 + q_basis @ c[4:]
    for _ in range(50):  # Gauss-Newton
        q = 1 + q_basis @ c[4:]
        value = (p_basis @ c[:4]) / q
        jacobian = torch.cat([p_basis, -value[:, None] * q_basis], 1) / q[:, None]
        c = c + torch.linalg.lstsq(jacobian, (even - value)[:, None]).solution[:, 0]
    a0, a2, a4, a6, b2, b4 = c.float().tolist()
    return [a0, 0.5, a2, b2 / 2, a4, b4 / 2, a6], [0.0, b2, 0.0, b4, 0.0]


NUMERATOR, DENOMINATOR = fit()


def main() -> None:
    x = torch.linspace(-3, 3, 600_001, dtype=torch.float64)
    error = (rational(x, NUMERATOR, DENOMINATOR) - gelu(x)).abs()
    error32 = (rational(x.float(), NUMERATOR, DENOMINATOR).double() - gelu(x)).abs()  # computed in float32
    assert max(error.max(), error32.max()) < 2e-4
    result = {
        "orders": [6, 5], "interval": [-3, 3], "numerator": NUMERATOR, "denominator": DENOMINATOR,
        "maxError": error.max().item(), "maxErrorFloat32": error32.max().item(),
        "samples": [{"x": v, "value": rational(torch.tensor(v, dtype=torch.float64), NUMERATOR, DENOMINATOR).item()}
                    for v in [-30.0, -10.0, -5.0, -3.0, -2.0, -1.0, -0.25, 0.0, 0.5, 1.0, 1.5, 3.0, 4.0, 10.0, 30.0]],
    }  # fmt: skip
    write_json(FIXTURES / "rational.json", result)
    print(result)


if __name__ == "__main__":
    main()
