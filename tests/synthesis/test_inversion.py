from __future__ import annotations

import torch
from torch import nn

from mkdext.synthesis import FeatureStatistics
from mkdext.synthesis.inversion import normalisation_layers


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    )
    net(3 * torch.rand(8, 3, 9, 9))  # The layers keep something else than 0 and 1.
    return net.double().eval()


def test_the_loss_is_the_distance_of_means_and_variances_of_every_layer():
    net, images = network(), torch.rand(2, 3, 6, 5, dtype=torch.float64)
    with FeatureStatistics(net) as statistics:
        net(images)
    expected, x = 0.0, images
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            channels = x.transpose(0, 1).flatten(1)
            variances = channels.square().mean(1) - channels.mean(1).square()
            expected += (channels.mean(1) - layer.running_mean).square().sum().sqrt()
            expected += (variances - layer.running_var).square().sum().sqrt()
        x = layer(x)
    torch.testing.assert_close(statistics.loss(), expected)


def test_layers_made_for_several_gpus_count_as_well():
    net, images = network(), torch.rand(2, 3, 6, 5, dtype=torch.float64)
    losses = []
    for form in (net, nn.SyncBatchNorm.convert_sync_batchnorm(net)):
        with FeatureStatistics(form) as statistics:
            form(images)
        losses.append(statistics.loss())
    torch.testing.assert_close(*losses)


def test_the_gradient_reaches_the_images_and_agrees_with_finite_differences():
    net, images = network(), torch.rand(2, 3, 6, 5, dtype=torch.float64)

    def loss(images: torch.Tensor) -> torch.Tensor:
        with FeatureStatistics(net) as statistics:
            net(images)
        return statistics.loss()

    assert torch.autograd.gradcheck(loss, images.requires_grad_())


def test_the_network_is_left_as_it_was():
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with FeatureStatistics(net):
        net(torch.rand(1, 3, 6, 6, dtype=torch.float64))
    assert not any(layer._forward_pre_hooks for layer in net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_layers_without_kept_statistics_are_left_out():
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3))
    assert normalisation_layers(net) == []
