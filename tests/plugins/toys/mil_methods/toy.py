"""The mean of the instances, and a linear layer."""

import torch
from torch import nn

from cytofm_cli.mil.base import MilHead, MilOutput
from cytofm_cli.registry import Plugin, samples


class Toy(MilHead):
    def __init__(self, n_features, n_classes, config):
        super().__init__()
        self.classify = nn.Linear(n_features, n_classes)

    def forward(self, x_BND, mask_BN=None, seeds=None):
        real_BN = x_BND.new_ones(x_BND.shape[:2]) if mask_BN is None else mask_BN.to(x_BND.dtype)
        attention_B1N = (real_BN / real_BN.sum(1, keepdim=True))[:, None]
        bag_BD = torch.bmm(attention_B1N, x_BND)[:, 0]
        return MilOutput(self.classify(bag_BD), attention_B1N, real_BN[:, None], bag_BD)


PLUGIN = Plugin(make=Toy, summary="mean and linear layer", sample=samples())
