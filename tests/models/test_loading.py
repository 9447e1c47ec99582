"""Strict loading and its remedies."""

import pytest
import torch
from torch import nn

from robustsuite.errors import InputError
from robustsuite.models.loading import fits, load_into


def net(outputs: int = 10, hidden: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def test_all_values_arrive() -> None:
    source, target = net(), net()
    load_into(target, source.state_dict(), "f")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_only_the_batch_norm_counter_may_be_absent() -> None:
    state = {k: v for k, v in net().state_dict().items() if not k.endswith("num_batches_tracked")}
    target = net()
    load_into(target, state, "f")
    assert torch.equal(target.state_dict()["0.weight"], state["0.weight"])
    del state["1.running_mean"]
    with pytest.raises(InputError, match=r"Missing in the file \(1\): 1\.running_mean"):
        load_into(net(), state, "f")


def test_a_prefix_is_proposed_and_stripped() -> None:
    source = net()
    state = {"model.inner." + k: v for k, v in source.state_dict().items()}
    with pytest.raises(InputError, match=r"start with 'model\.inner\.': add --strip-prefix model\.inner\.$"):
        load_into(net(), state, "f")
    target = net()
    load_into(target, state, "f", strip_prefix="model.inner.")
    assert torch.equal(target.state_dict()["3.weight"], source.state_dict()["3.weight"])
    with pytest.raises(InputError, match="cannot be stripped"):
        load_into(net(), state, "f", strip_prefix="net.")


def test_order_is_proposed_and_matched() -> None:
    source = net()
    state = {f"layer.{i}": v for i, v in enumerate(source.state_dict().values()) if v.ndim}
    with pytest.raises(InputError, match="--match-by-order"):
        load_into(net(), state, "f")
    target = net()
    load_into(target, state, "f", by_order=True)
    assert torch.equal(target.state_dict()["3.bias"], source.state_dict()["3.bias"])
    with pytest.raises(InputError, match=r"by order fails at 'layer\.\d' \[8, 4\].*'0.weight' \[9, 4\]"):
        load_into(net(hidden=9), state, "f", by_order=True)
    short = dict(list(state.items())[:-1])
    with pytest.raises(InputError, match=r"the file has 7 tensors, the architecture 8"):
        load_into(net(), short, "f", by_order=True)


def test_another_number_of_classes_is_recognised() -> None:
    with pytest.raises(InputError, match=r"3\.weight is \[7, 8\] in the file, \[10, 8\].*has 7 classes, 10"):
        load_into(net(), net(outputs=7).state_dict(), "f")


def test_another_width_is_recognised() -> None:
    with pytest.raises(InputError, match="this architecture at another size"):
        load_into(net(), net(hidden=6).state_dict(), "f")


def test_another_architecture_lists_the_names_in_groups() -> None:
    other = nn.ModuleDict({"layer1": net(), "head": nn.Linear(3, 3, bias=False)})
    with pytest.raises(InputError) as caught:
        load_into(net(), other.state_dict(), "weights.pt")
    message = str(caught.value)
    assert message.startswith("weights.pt: the weights do not fit")
    assert "Missing in the file (8): 0.* (2), 1.* (4), 3.* (2)." in message
    assert "Not in the architecture (10): layer1.* (9), head.weight." in message
    assert "another architecture" in message


def test_nothing_is_loaded_on_a_mismatch() -> None:
    target = net()
    before = target.state_dict()["0.weight"].clone()
    with pytest.raises(InputError):
        load_into(target, net(outputs=7).state_dict(), "f")
    assert torch.equal(target.state_dict()["0.weight"], before)


def test_fits_compares_names_and_shapes() -> None:
    assert fits(net().state_dict(), net().state_dict())
    assert not fits(net().state_dict(), net(outputs=7).state_dict())
