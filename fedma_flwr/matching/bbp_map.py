"""BBP-MAP: match the units of several clients, one client at a time.

References
----------
Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019
(PFNM: the model and its inference, section 3).
Yurochkin et al., "Statistical Model Aggregation via Parameter Matching", NeurIPS 2019 (SPAHM:
the marginal gain and learned variances).
Wang et al., "Federated Learning with Matched Averaging", ICLR 2020 (FedMA, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .assignment import Backend, check_backend
from .calibrate import calibrate
from .result import Floats, Integers, Matching, average_members, column_sums
from .search import Model, Rules, Search
from .validate import check_max_width, check_orders, check_prior_mean, check_units, check_weights

Output = Literal["mean", "posterior"]


@dataclass(frozen=True, kw_only=True)
class BBPMAP:
    """Beta-Bernoulli process MAP matching.

    Parameters
    ----------
    gamma : float (default: 1.0)
        The larger, the cheaper is a new global unit.
    local_variance, prior_variance : float or None (default: None)
        Variance of local units around their global unit, and of global units around the prior
        mean. None: calibrated from the data, so that the units' scale does not matter.
    sweeps : int (default: 5)
        At most so many sweeps over the clients after the first pass.
    max_width : int or None (default: None)
        The largest global width; the widest client's for groups that cannot grow.
    output : {"mean", "posterior"} (default: "mean")
        What a global unit is: its members' (weighted) mean, or the posterior mean, which is
        shrunk towards the prior mean.
    backend : {"auto", "scipy", "lapx", "lapsolver"} (default: "auto")
        The assignment solver; all are exact. "auto" is scipy's.
    fit : bool (default: False)
        Estimate mean and variances, per dimension, after the first pass and every sweep (SPAHM).
    log_determinant : bool (default: True)
        Whether the gain has the marginal likelihood's log-determinant terms.
    popularity_weight : float (default: 2.0)
        Weight of ``log(n / (J - n))`` in the gain of an existing unit with popularity n.
    popularity_cap : int (default: 10)
        Popularity counts up to here in that term.
    soft_width : int, "double" or None (default: None)
        Above this global width a client may open one new unit an update ("double": twice the
        client's width). None: as many as it has units.
    default_prior_mean : {"zero", "rows"} (default: "rows")
        The prior mean where ``match`` is given none: 0, or the mean of all rows.

    Raises
    ------
    ValueError
        A value outside its range, or a backend that is unknown or not installed.
    """

    gamma: float = 1.0
    local_variance: float | None = None
    prior_variance: float | None = None
    sweeps: int = 5
    max_width: int | None = None
    output: Output = "mean"
    backend: Backend = "auto"
    fit: bool = False
    log_determinant: bool = True
    popularity_weight: float = 2.0
    popularity_cap: int = 10
    soft_width: int | Literal["double"] | None = None
    default_prior_mean: Literal["zero", "rows"] = "rows"

    def __post_init__(self) -> None:
        check_backend(self.backend)
        for name in ("gamma", "local_variance", "prior_variance", "popularity_cap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name}: {value!r}, expected a finite number > 0")
        if self.sweeps < 0:
            raise ValueError(f"sweeps: {self.sweeps}, expected >= 0")
        if self.output not in get_args(Output):
            raise ValueError(f"output: {self.output!r}, expected one of {get_args(Output)}")

    @classmethod
    def reference(
        cls,
        gamma: float = 7.0,
        local_variance: float = 1.0,
        prior_variance: float = 1.0,
        sweeps: int = 5,
        *,
        max_width: int | None = None,
        output: Output = "posterior",
        backend: Backend = "auto",
    ) -> BBPMAP:
        """Return the matcher of the FedMA authors' code, constants and all.

        Fixed variances, no log-determinants, popularity log with weight 1, one new unit an
        update above width 700, prior mean 0, posterior means. Where the original runs out of
        columns and drops units, this opens new ones.
        """
        return cls(
            gamma=gamma,
            local_variance=local_variance,
            prior_variance=prior_variance,
            sweeps=sweeps,
            max_width=max_width,
            output=output,
            backend=backend,
            log_determinant=False,
            popularity_weight=1.0,
            soft_width=700,
            default_prior_mean="zero",
        )

    @classmethod
    def learned(
        cls,
        gamma: float = 7.0,
        local_variance: float = 1.0,
        prior_variance: float = 1.0,
        sweeps: int = 5,
        fit: bool = True,
        *,
        max_width: int | None = None,
        output: Output = "posterior",
        backend: Backend = "auto",
    ) -> BBPMAP:
        """Return SPAHM's matcher: the marginal gain, mean and variances learned.

        ``fit=False`` keeps the variances, and the prior mean at the mean of all rows.
        """
        return cls(
            gamma=gamma,
            local_variance=local_variance,
            prior_variance=prior_variance,
            sweeps=sweeps,
            max_width=max_width,
            output=output,
            backend=backend,
            fit=fit,
            soft_width="double",
        )

    def match(
        self,
        units: Sequence[Floats],
        prior_mean: float | Floats | None = None,
        weights: Sequence[float] | Floats | None = None,
        orders: Sequence[Sequence[int]] | Integers | None = None,
        seed: int = 0,
    ) -> Matching:
        """Match the units of J clients.

        Parameters
        ----------
        units : sequence of J float arrays, shapes (L_j, D)
            One signature a row; widths may differ.
        prior_mean : float, float array of shape (D,), or None
            The mean of the global units; None: see ``default_prior_mean``.
        weights : array-like, shape (J,), or None
            One weight a client for the members' mean; None: all equal. The assignments do not
            depend on it.
        orders : int array-like, shape (sweeps, J), or None
            The clients' order in every sweep; None: drawn from ``seed``.
        seed : int

        Returns
        -------
        Matching

        Raises
        ------
        ValueError
            No client; different D; NaN or infinity; ``max_width`` below the widest client;
            orders that are no permutations; weights together with ``output="posterior"``.
        """
        arrays = check_units(units)
        check_max_width(self.max_width, arrays)
        mass = check_weights(weights, len(arrays))
        if mass is not None and self.output == "posterior":
            raise ValueError('weights: only output="mean" is weighted, output is "posterior"')
        visits = check_orders(orders, self.sweeps, len(arrays), seed)
        search = Search(arrays, self._model(arrays, prior_mean), self._rules(), self.fit)
        sweeps = search.run(visits)
        return self._result(arrays, search, mass, sweeps)

    def _model(self, units: Sequence[Floats], prior_mean: float | Floats | None) -> Model:
        size = units[0].shape[1]
        if prior_mean is not None:
            mean = check_prior_mean(prior_mean, size)
        elif self.default_prior_mean == "zero":
            mean = np.zeros(size)
        else:
            rows = sum(len(array) for array in units)
            mean = sum(column_sums(array) for array in units) / rows
        local, prior = self.local_variance, self.prior_variance
        if local is None or prior is None:
            found = calibrate(units, mean)
            local, prior = local or found[0], prior or found[1]
        return Model(float(local), float(prior), mean)

    def _rules(self) -> Rules:
        return Rules(
            gamma=self.gamma,
            log_determinant=self.log_determinant,
            popularity_weight=self.popularity_weight,
            popularity_cap=self.popularity_cap,
            soft_width=self.soft_width,
            max_width=self.max_width,
            backend=self.backend,
        )

    def _result(
        self, units: Sequence[Floats], search: Search, weights: Floats | None, sweeps: int
    ) -> Matching:
        assignments = search.state.assignments()
        popularity = search.state.popularity[search.state.numbering]
        means = search.state.means()
        numerator, precision = search.model.posterior(means * popularity[:, None], popularity)
        objective = float((numerator**2 / precision).sum())
        if self.output == "posterior":
            means = numerator / precision
        elif weights is not None:
            means = average_members(units, assignments, len(popularity), weights)
        return Matching(assignments, means, popularity, objective, sweeps)
