"""What measures share that look at the grid of a decoder's cells."""

from dataclasses import dataclass

from segbench.measures.base import CountMeasure, DoesNotFit, Ints, Sample


@dataclass
class OfStride(CountMeasure):
    """A measure of cells of s x s pixels.

    Args:
        stride: s, 2 or more; None takes the decoder's: image pixels per cell of the map from which it upsamples to the
            image.

    Raises:
        ValueError: a stride below 2.
    """

    stride: int | None = None

    def __post_init__(self) -> None:
        if self.stride is not None and self.stride < 2:
            raise ValueError(f"stride should be 2 or more, not {self.stride}")

    def suffix(self, sizes: Ints) -> str:
        return f" (s = {self.stride})" if self.stride else ""

    def of(self, sample: Sample) -> int:
        """s of a sample."""
        return self.stride or sample.model.stride

    def on_grid(self, sample: Sample) -> int:
        """s of a sample in which a cell is s x s pixels of the labels, from their first row and column on.

        Raises:
            DoesNotFit: the decoder's stride is to be taken, and its cells are not.
        """
        if not self.stride and not sample.model.on_grid:
            raise DoesNotFit(
                f"cells of stride {sample.model.stride} are no blocks of the labels' pixels: images or labels are "
                "resized, views averaged, or windows start within a cell"
            )
        return self.of(sample)
