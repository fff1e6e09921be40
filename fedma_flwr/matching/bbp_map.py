"""BBP-MAP: match the units of several clients, one client at a time.

Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019
(PFNM: the model and its inference, section 3).
Yurochkin et al., "Statistical Model Aggregation via Parameter Matching", NeurIPS 2019 (SPAHM:
the marginal gain and learned variances).
Wang et al., "Federated Learning with Matched Averaging", ICLR 2020 (FedMA, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from . import validate
from .anchors import search_all
from .arrays import Floats, Integers
from .assignment import Backend, check_backend
from .matcher import Matching, Output
from .model_choice import choose_model
from .pricing import Pricing
from .search import Search
from .threads import threads_to_match, using_threads


@dataclass(frozen=True, kw_only=True)
class BBPMAP:
    """Beta-Bernoulli process MAP matching of units across clients.

    Local units are draws around global units, ``w_jl ~ N(theta_i, local_variance)``, global units
    draws ``theta_i ~ N(prior_mean, prior_variance)``; which client has which global unit is a
    beta-Bernoulli process. With the other clients' assignments fixed, the most probable ones of
    one client solve a linear assignment problem (PFNM, section 3; FedMA, equation 2). With
    precisions ``s, s0 = 1 / local_variance, 1 / prior_variance``, a global unit's numerator
    ``g_i = mu s0 + s sum of members``, precision ``S_i = s0 + n_i s`` and popularity ``n_i``, the
    gain of row w in unit i is, with ``c = min(n_i, popularity_cap)``,

        |s w + g_i|^2 / (s + S_i) - |g_i|^2 / S_i + log-dets + popularity_weight log(c / (J - c))

    and in the k-th new unit

        |s w + mu s0|^2 / (s + s0) - |mu s0|^2 / s0 + log-dets - 2 log k + 2 log(gamma / J)

    Clients are visited by decreasing width, then in ``sweeps`` random orders, until a sweep
    changes nothing. Torch does the products, on the GPU where there is one.

    Parameters
    ----------
    gamma : float (default: 1.0)
        How readily the global width grows: towards 0 all units are merged, into the widest
        client's width, towards infinity none. With calibrated variances it means the same for
        units of any scale and size. Where units of different clients are seen to be the
        same ones, it says how alike units must be to be merged: the line that the data draw is
        at 1; at 2 they must be about twice as near (squared distance), at 0.5 half as near.
        Where nothing tells units apart (networks trained from different initialisations), it
        says how much is added to the width: at 1 about 5 % for 2 clients, a quarter for 10, 40 %
        for 20, growing like the logarithm of their number; at 2 about twice as much; nothing
        where it would be less than a unit a client. With given variances it is the mass of the
        beta process, as in the paper: it weighs against quadratic gains whose size depends on
        the units' scale.
    local_variance, prior_variance : float or None (default: None)
        Variance of local units around their global unit, and of global units around the prior
        mean; both or none. None: calibrated from the data, so that the units' scale does not
        matter (see ``calibration.py``); ``log_determinant`` is then False, and the popularity's
        weight and cap are those that suit the data.
    sweeps : int (default: 5)
        At most so many sweeps over the clients after the first pass.
    max_width : int or None (default: None)
        The largest global width where ``match`` is given none.
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
    threads : int or None (default: None)
        Torch's, while units are matched. None: by their size; most layers are worth one.
    effort : float (default: 16.0)
        What bounds the work where very many units want the same places, as hostile clients' may:
        so many places that it would rather have a unit may be denied, on average over such
        updates, before later ones get an approximate assignment (``Matching.settled``). Unrelated
        units stay below 3. Infinity: always the best.

    anchors : int (default: 32)
        So many clients, the first ones, are matched jointly; each further one is assigned once, to
        the sums of all before it, and the anchors are then visited again. Memory does not grow with
        the cohort, and time no faster than it. ``fit`` matches all jointly.

    Raises
    ------
    ValueError
        A value outside its range, or a backend that is unknown or not installed.

    Examples
    --------
    Two clients share three units, each in its own order, and have one of their own:

    >>> import numpy as np
    >>> shared, own = np.eye(5, 40)[:3], np.eye(5, 40)[3:]
    >>> left, right = np.vstack([shared, own[:1]]), np.vstack([own[1:], shared[::-1]])
    >>> matching = BBPMAP().match([left, right])
    >>> [assignment.tolist() for assignment in matching.assignments]
    [[0, 1, 2, 4], [3, 2, 1, 0]]
    >>> matching.popularity.tolist()
    [2, 2, 2, 1, 1]
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
    # The text names a run's settings: none of these.
    threads: int | None = field(default=None, repr=False)
    effort: float = field(default=16.0, repr=False)
    anchors: int = field(default=32, repr=False)

    def __post_init__(self) -> None:
        check_backend(self.backend)
        for name in ("gamma", "local_variance", "prior_variance", "popularity_cap"):
            validate.check_positive(name, getattr(self, name))
        validate.check_variances(self.local_variance, self.prior_variance, fit=self.fit)
        validate.check_choice("default_prior_mean", self.default_prior_mean, ("zero", "rows"))
        validate.check_effort(self.sweeps, self.threads, self.effort)
        validate.check_anchors(self.anchors)
        validate.check_choice("output", self.output, get_args(Output))

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
        threads: int | None = None,
    ) -> BBPMAP:
        """Return the matcher of the FedMA authors' code, constants and all.

        Fixed variances, no log-determinants, popularity log with weight 1, one new unit an
        update above width 700, prior mean 0, posterior means. Where the original runs out of
        columns and drops units, this opens new ones.

        Examples
        --------
        A global unit is its members' sum over one more than their number, with variances of 1:

        >>> units = np.array([[4.0, 0.0], [0.0, 6.0]])
        >>> matching = BBPMAP.reference(gamma=1.0).match([units, units[::-1]])
        >>> [assignment.tolist() for assignment in matching.assignments]
        [[0, 1], [1, 0]]
        >>> matching.units.round(3).tolist()
        [[2.667, 0.0], [0.0, 4.0]]
        """
        return cls(
            gamma=gamma,
            local_variance=local_variance,
            prior_variance=prior_variance,
            sweeps=sweeps,
            max_width=max_width,
            output=output,
            backend=backend,
            threads=threads,
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
        threads: int | None = None,
    ) -> BBPMAP:
        """Return SPAHM's matcher: the marginal gain, mean and variances learned.

        ``fit=False`` keeps the variances, and the prior mean at the mean of all rows.

        Examples
        --------
        With the variances learned, the posterior means hardly shrink:

        >>> units = np.random.default_rng(0).normal(size=(5, 40))
        >>> kept, learned = (
        ...     BBPMAP.learned(gamma=1.0, fit=fit).match([units, 1.1 * units[::-1]])
        ...     for fit in (False, True)
        ... )
        >>> [assignment.tolist() for assignment in learned.assignments]
        [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]
        >>> [float(np.linalg.norm(m.units - 1.05 * units).round(2)) for m in (kept, learned)]
        [4.38, 0.04]
        """
        return cls(
            gamma=gamma,
            local_variance=local_variance,
            prior_variance=prior_variance,
            sweeps=sweeps,
            max_width=max_width,
            output=output,
            backend=backend,
            threads=threads,
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
        *,
        max_width: int | None = None,
    ) -> Matching:
        """Match the units of J clients.

        Parameters
        ----------
        units, weights, seed
            As for :meth:`Matcher.match`, which also says what is returned.
        prior_mean : float, float array of shape (D,), or None
            The mean of the global units; None: see ``default_prior_mean``.
        orders : int array-like, shape (sweeps, J), or None
            The clients' order in every sweep; None: drawn from ``seed``.
        max_width : int or None
            The largest global width, in place of the matcher's own.

        Raises
        ------
        ValueError
            No client; different D; NaN or infinity; ``max_width`` below the widest client;
            orders that are no permutations; weights together with ``output="posterior"``.

        Examples
        --------
        The second client's units are longer, and count three times as much:

        >>> units = np.eye(3, 10)
        >>> matching = BBPMAP().match([units, 1.2 * units[[2, 0, 1]]], weights=[1.0, 3.0])
        >>> [assignment.tolist() for assignment in matching.assignments]
        [[0, 1, 2], [2, 0, 1]]
        >>> matching.units[:, :3].round(2).tolist()
        [[1.15, 0.0, 0.0], [0.0, 1.15, 0.0], [0.0, 0.0, 1.15]]
        """
        anchors = len(units) if self.fit else self.anchors
        arrays = validate.check_sizes(validate.check_units(units[:anchors]))
        limit = validate.check_max_width(units, self.max_width, max_width)
        mass = validate.check_weights(weights, len(units))
        if mass is not None and self.output == "posterior":
            raise ValueError('weights: only output="mean" is weighted, output is "posterior"')
        visits = validate.check_orders(orders, self.sweeps, len(units), seed)
        mean = validate.check_prior_mean(prior_mean, arrays, self.default_prior_mean)
        prices = self.gamma, self.popularity_weight, self.popularity_cap, self.soft_width, limit
        variances, with_logs = (self.local_variance, self.prior_variance), self.log_determinant
        model, pricing = choose_model(
            arrays, mean, variances, Pricing(*prices, clients=len(units)), with_logs
        )
        with using_threads(self.threads or threads_to_match(arrays)):
            search = Search(
                arrays, model, pricing, backend=self.backend, fit=self.fit, effort=self.effort
            )
            sweeps = search_all(search, units, arrays, visits)
            every = arrays if len(arrays) == len(units) else units
            return search.result(every, sweeps, mass, self.output == "posterior")
