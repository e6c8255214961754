"""The Fréchet distance between two sets of features, as if each were normal.

    d² = |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a^{1/2} Σ_b Σ_a^{1/2})^{1/2})

is the squared 2-Wasserstein distance between N(μ_a, Σ_a) and N(μ_b, Σ_b). No matrix square root is needed: with the
centred features X = Q R (Q orthonormal, R triangular), Σ = RᵀR/(n − 1), and

    tr (Σ_a^{1/2} Σ_b Σ_a^{1/2})^{1/2} = Σ_j s_j,    R_a R_bᵀ/√((n_a − 1)(n_b − 1)) = U diag(s) Vᵀ

To first order, one more sample x = μ_a + R_aᵀ q/√(n_a − 1) changes d² by (ψ(x) − E ψ)/n_a,

    ψ = 2 (μ_a − μ_b)·(x − μ_a) + |x − μ_a|² − Σ_j s_j (u_j·q)²

since ∂d²/∂Σ_a = I − T, with T the linear map that transforms N(0, Σ_a) into N(0, Σ_b). So the standard error of d² is
that of the mean of ψ, added in quadrature over both sets.

Sources: Dowson & Landau 1982, "The Fréchet Distance between Multivariate Normal Distributions"; Heusel et al. 2017,
"GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (the use on features of a network,
equation 6); Chong & Forsyth 2020, "Effectively Unbiased FID and Inception Score and Where to Find Them" (the bias).
"""

import numpy as np
from jaxtyping import Float

from jaxdiff.typing import InputError


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> tuple[float, float]:
    """Return the squared Fréchet distance d² between two sets of features, and its standard error.

    Both are computed in float64, and d² >= 0. d² of finite sets is biased upwards by about c/n + c'/m, where c grows
    with the number of features. So compare distances at the same n and m only, with the distance of real data at that
    n as the floor. The standard error is the spread over draws of the sets, not this bias; it is of first order, and
    too small if the two distributions are so close that the bias dominates d².

    Raises:
      InputError: if features are not finite, or a set has at most d samples, so that its covariance is singular.
    """
    for name, features in (("a", a), ("b", b)):
        n, d = features.shape
        if n <= d:
            raise InputError(
                f"{name} has {n} samples of {d} features; use more samples than features, or the covariance is "
                f"singular: give at least {d + 1}, better ten times as many"
            )
        if bad := np.count_nonzero(~np.isfinite(features).all(axis=1)):
            raise InputError(f"{name} has {bad} of {n} rows that are not finite; remove them, and report how many")
    mean_a, x_a, q_a, r_a = _factors(a)
    mean_b, x_b, q_b, r_b = _factors(b)
    u, s, vt = np.linalg.svd(r_a @ r_b.T)
    shift = mean_a - mean_b
    squared = shift @ shift + (r_a**2).sum() + (r_b**2).sum() - 2 * s.sum()
    psi_a = 2 * x_a @ shift + (x_a**2).sum(axis=1) - (q_a @ u) ** 2 @ s
    psi_b = -2 * x_b @ shift + (x_b**2).sum(axis=1) - (q_b @ vt.T) ** 2 @ s
    return max(float(squared), 0.0), float(np.sqrt(psi_a.var(ddof=1) / len(a) + psi_b.var(ddof=1) / len(b)))


def _factors(features: Float[np.ndarray, "n d"]) -> tuple[np.ndarray, ...]:
    """Return the mean, X, and Q and R of X = Q R, scaled so that Σ = RᵀR and the rows of Q have covariance I."""
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    q, r = np.linalg.qr(features - mean)
    scale = np.sqrt(len(features) - 1)
    return mean, features - mean, q * scale, r / scale
