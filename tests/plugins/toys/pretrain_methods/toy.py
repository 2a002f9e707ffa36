"""The two views of a tile are found among those of the others."""

from cytofm_cli.pretrain.base import Method, MethodConfig, StepOutput
from cytofm_cli.pretrain.losses import nt_xent
from cytofm_cli.registry import PretrainPlugin, samples


class Toy(Method):
    def __init__(self, backbones, config, length):
        super().__init__()
        self.config, self.trunk = config, backbones(role="student")

    def forward(self, batch, step):
        x_BD, y_BD = (self.trunk(view).cls_BD for view in batch.views[:2])
        return StepOutput(nt_xent(x_BD, y_BD, 0.2), x_BD.detach())

    def encoder(self):
        return self.trunk

    student = encoder


PLUGIN = PretrainPlugin(
    make=Toy,
    config=MethodConfig,
    summary="contrast without a projector",
    views={"recipe": "simclr", "global_scale": (0.5, 1.0)},
    sample=samples(),
)
