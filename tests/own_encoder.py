"""What a user writes to plug in an encoder."""

from torch import nn


class OwnEncoder(nn.Module):
    """Blocks of convolution, batch norm and dropout, at strides 4, 8 and 16."""

    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, *, width: int = 8, dropout: float = 0.5):
        super().__init__()
        self.strides = (4, 8, 16)
        self.channels = (width, 2 * width, 4 * width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, d, 3, stride, 1), nn.BatchNorm2d(d), nn.GELU(), nn.Dropout(dropout))
            for c, d, stride in zip((3, width, 2 * width), self.channels, (4, 2, 2), strict=True)
        )

    def forward(self, image):
        features = [self.blocks[0](image)]
        for block in self.blocks[1:]:
            features.append(block(features[-1]))
        return features
