from __future__ import annotations

import torch

from mkdext.methods import method_class


def test_the_loss_is_the_mean_absolute_difference_of_the_pictures():
    torch.manual_seed(0)
    student, teacher = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8)
    loss, (slope,), _ = method_class("response")([3], [3]).gradient([student], [teacher])
    torch.testing.assert_close(loss, (student - teacher).abs().mean().detach())
    torch.testing.assert_close(slope, (student - teacher).detach().sign() / student.numel())
