"""The matcher's defaults on trained networks: a small run of ``benchmarks.quality``."""

from benchmarks.quality import REFERENCE, first_round

# 3 clients of 200 digits each; all layers in one stage, where matching counts most.
SMALL = {
    "clients": 20,
    "fraction_train": 0.15,
    "partition": "homogeneous",
    "groups_per_stage": "all",
    "local_epochs": 5,
    "retrain_epochs": 1,
    "head_epochs_factor": 1.0,
}


def test_defaults_are_at_least_as_accurate_as_the_reference(tmp_path):
    """LeNets from own initialisations; no matching at all shows that there is something to lose."""
    defaults, reference, identity = (
        first_round(matcher, seed=1, alpha=0.5, local_models=tmp_path, **SMALL)
        for matcher in ("BBPMAP()", REFERENCE, "IdentityMatching()")
    )
    assert defaults["accuracy"] >= reference["accuracy"]
    assert defaults["accuracy"] > identity["accuracy"] + 0.1
    assert 1.0 < defaults["growth"] < 1.3
