"""A small convolutional network: needs weights, and `cytofm pretrain` makes them."""

from cytofm_cli.encoders.assumptions import settle
from cytofm_cli.encoders.base import Blueprint, EncoderSpec
from cytofm_cli.registry import EncoderPlugin, samples


def network():
    from torch import nn  # listings need no torch

    class ToyNet(nn.Module):
        num_features = 8

        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.GELU())

        def forward_features(self, x_BCHW):
            return self.body(x_BCHW)

        def forward_head(self, features_BDHW, pre_logits=True):
            return features_BDHW.mean((2, 3))

    return ToyNet()


def make(request):
    from cytofm_cli.encoders.torch_encoder import build

    usual = {"dim": 8, "input_px": 32, "pooling": "pool"}
    return build(request, network, EncoderSpec(name=request.name, **settle(request, usual)))


def trunk(request):
    if request.builder:
        raise ValueError(request.builder)
    return Blueprint(arch="toynet", builder={}, is_vit=False, network=lambda rate: network())


PLUGIN = EncoderPlugin(
    make=make,
    summary="a convolution",
    expects={"dim": 8, "input_px": 32},
    trunk=trunk,
    sample=samples({"random_weights": True}),
)
