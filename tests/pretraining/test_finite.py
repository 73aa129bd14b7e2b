"""A loss, gradient or weight that is no number: nothing is updated or saved, and the message says what it was."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from electra_fast.pretraining.finite import FiniteWatch, cause
from electra_fast.pretraining.train import NonFiniteLoss, pretrain
from tests.pretraining.test_phases import checkpoint_of


@pytest.fixture
def at_update(monkeypatch: pytest.MonkeyPatch):
    """at_update(n, spoil): before update number n (from 1) `spoil(optimizer)` is called; gives what the optimizer held
    before and after each update."""

    def arrange(number: int, spoil) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        updates, step = [], torch.optim.AdamW.step

        def spoiling(self, *args, **kwargs):
            parameters = [p for group in self.param_groups for p in group["params"]]
            before = [p.detach().clone() for p in parameters]
            step(self, *args, **kwargs)
            updates.append((before, [p.detach().clone() for p in parameters]))
            if len(updates) == number - 1:
                spoil(self)

        monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
        return updates

    return arrange


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in zip(a, b, strict=True))  # NaN too


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("tokens", [None, 40])
def test_an_infinite_weight_stops_the_run_before_the_update(tmp_path, quick_config, at_update, value, tokens):
    def spoil(optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["params"][7].data.view(-1)[3] = value

    updates = at_update(7, spoil)  # step 7: reported by no row, read while step 8 is computed
    settings = {"training.log_every": 100, "training.save_every": 5, "training.eval_every": 0}
    config = quick_config(tmp_path / "run", **settings, **{"training.micro_batch_tokens": tokens})
    with pytest.raises(NonFiniteLoss) as stopped:
        pretrain(config, progress=False)
    message = str(stopped.value)
    assert message.startswith("step 7 (joint) is not finite: weight ")
    assert f".weight ({value}); " in message
    assert "discriminator_loss (" in message
    assert "optimizer.lr" in message
    assert "--resume" in message
    assert len(updates) == 8  # the answer is read a step late ...
    assert all(same(before, after) for before, after in updates[6:])  # ... but neither update changed a thing
    assert not same(*updates[5])
    checkpoints = list((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-00000005"]
    assert all(tensor.isfinite().all() for tensor in checkpoint_of(tmp_path / "run", 5).values())


def test_what_a_bad_state_would_be_saved_as_is_not_saved(tmp_path, quick_config, at_update):
    def spoil(optimizer: torch.optim.Optimizer) -> None:
        optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg_sq"].view(-1)[0] = float("inf")

    at_update(6, spoil)  # after update 5, before the checkpoint of step 5
    config = quick_config(tmp_path / "run", **{"training.save_every": 5})
    with pytest.raises(NonFiniteLoss, match=r"after step 5 exp_avg_sq of .* \(inf\) is no number and is not saved"):
        pretrain(config, progress=False)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_gradient_alone_is_named(tmp_path, quick_config, monkeypatch):
    from electra_fast.pretraining import train as train_module

    compute = train_module._Gradients.compute

    def spoiling(self, step, *args, **kwargs):
        totals = compute(self, step, *args, **kwargs)
        if step == 2:
            dict(self.masters.named_parameters())["generator.generator_lm_head.bias"].grad[5] = float("inf")
        return totals

    monkeypatch.setattr(train_module._Gradients, "compute", spoiling)
    expected = r"step 3 \(joint\) is not finite: gradient of generator\.generator_lm_head\.bias \(inf\)\. Its update"
    with pytest.raises(NonFiniteLoss, match=expected):
        pretrain(quick_config(tmp_path / "run"), progress=False)


def test_the_run_goes_on_from_the_last_good_checkpoint(tmp_path, quick_config, at_update, monkeypatch):
    pretrain(quick_config(tmp_path / "whole"), progress=False)
    at_update(9, lambda optimizer: optimizer.param_groups[0]["params"][0].data.fill_(float("nan")))
    with pytest.raises(NonFiniteLoss, match="step 9"):
        pretrain(quick_config(tmp_path / "cut"), progress=False)
    monkeypatch.undo()
    assert pretrain(quick_config(tmp_path / "cut"), resume=True, progress=False).step == 12
    for tower in ("generator", "discriminator"):
        ours, theirs = (load_file(tmp_path / run / tower / "model.safetensors") for run in ("whole", "cut"))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_command_says_it_in_one_line(tmp_path, corpus, at_update, capsys):
    from electra_fast.cli import main
    from tests.small import pretrain_arguments

    at_update(3, lambda optimizer: optimizer.param_groups[0]["params"][0].data.fill_(float("inf")))
    assert main(pretrain_arguments(corpus / "train", tmp_path / "run", 5)) == 2
    message = capsys.readouterr().err
    assert "error: step 3 (joint) is not finite: weight " in message
    assert "Traceback" not in message


def test_verdicts():
    """Every pair of a loss and a norm at a scale of 1 and above."""
    numbers = [1.0, float("inf"), float("nan")]
    for loss, norm, scale in itertools.product(numbers, numbers, (1.0, 2.0)):
        watch = FiniteWatch(torch.device("cpu"))
        values = [torch.tensor(1.0), torch.tensor(loss)], torch.tensor(norm), torch.tensor(scale)
        skips, overflowed = watch.judge(3, *values)
        assert bool(skips) == (loss != 1.0 or norm != 1.0)
        assert bool(overflowed) == (norm != 1.0)
        is_fatal = loss != 1.0 or (norm != 1.0 and scale == 1.0)
        good = [torch.tensor(1.0)], torch.tensor(1.0), torch.tensor(scale)
        assert bool(watch.judge(4, *good)[0]) == is_fatal  # nothing follows a failed step
        assert watch.failed_step(before=3) is None
        assert watch.failed_step(before=5) == (3 if is_fatal else None)


def test_causes():
    def named(**values: float | None) -> list[tuple[str, torch.Tensor | None]]:
        return [(name, None if value is None else torch.tensor([0.0, value])) for name, value in values.items()]

    inf, nan = float("inf"), float("nan")
    assert cause(named(a=1.0), named(x=1.0), named(a=None)) == "the gradient's norm overflows"
    assert cause(named(a=1.0), named(x=1.0), named(a=1.0, b=nan)) == "gradient of b (nan)"
    assert cause(named(a=1.0), named(x=inf, y=nan), named(a=nan)) == "x (inf), y (nan)"
    assert cause(named(a=inf, b=nan, c=nan), named(x=nan), named(a=nan)) == "weight a (inf) and 2 more; x (nan)"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("found", [0.0, 1.0])
def test_fused_adamw_takes_found_inf_and_grad_scale(found, device, rng_seed):
    """What the loop relies on in PyTorch, for every version that is supported."""
    weight = nn.Parameter(torch.randn(50, device=device))
    before, gradient = weight.detach().clone(), torch.randn(50, device=device)
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True, weight_decay=0.0, eps=1e-6)
    moments = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
    optimizer.state[weight] = {"step": torch.tensor(1e8, device=device), **moments}
    weight.grad = gradient.clone()
    optimizer.found_inf = torch.tensor(found, device=device)
    optimizer.grad_scale = torch.tensor(4.0, device=device)
    optimizer.step()
    g = gradient.double() / 4
    moved = 0.0 if found else 0.1 * (0.1 * g) / ((0.001 * g**2).sqrt() + 1e-6)
    # A step of up to 0.3, of several operations, each rounded by up to 2e-8; what is left of the weight may be nothing.
    assert torch.allclose(weight.double(), before.double() - moved, rtol=1e-5, atol=5e-7)
    assert bool(optimizer.state[weight]["exp_avg"].any()) == (found == 0.0)
    assert float(optimizer.state[weight]["step"]) == 1e8
