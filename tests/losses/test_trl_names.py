"""TRL's names lead to losses of the table, with hyperparameters that these take."""

import pytest

from jaxpref import losses
from jaxpref.losses import trl_names

DPO_TRAINER = """sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero
    apo_down discopop sft sigmoid_norm""".split()
OTHERS = "kto apo_zero_unpaired cpo cpo_sigmoid cpo_hinge cpo_ipo cpo_simpo simpo alphapo orpo".split()


def test_all_losses_of_the_trainers_have_a_name():
    assert set(trl_names.TRL_LOSSES) == set(DPO_TRAINER + OTHERS)


@pytest.mark.parametrize("name", trl_names.TRL_LOSSES)
def test_a_name_resolves_to_a_loss_that_takes_its_hyperparameters(name):
    key, fixed = trl_names.resolve(f"trl:{name}")
    losses.bind(key, **fixed)
    objective = losses.get(key)
    assert set(trl_names.TRL_LOSSES[name].names.values()) <= set(objective.hyperparameters)
    assert objective.scale is None or fixed[objective.scale] == 0.1


def test_our_own_names_pass_unchanged():
    assert trl_names.resolve("ipo") == ("ipo", {})
    assert trl_names.own_name("cdpo", "label_smoothing") == "label_smoothing"


def test_trls_hyperparameters_get_our_names():
    assert trl_names.resolve("trl:ipo") == ("ipo_mean", {"tau": 0.1})
    assert trl_names.own_name("trl:ipo", "beta") == "tau"
    assert trl_names.own_name("trl:robust", "label_smoothing") == "eps"
    assert trl_names.own_name("trl:simpo", "simpo_gamma") == "gamma"


def test_a_name_that_trl_does_not_have_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"must be one of trl:alphapo, .*trl:sppo_hard; got 'trl:sigmod'"):
        trl_names.resolve("trl:sigmod")
