"""mIoU: mean intersection over union of the whole data set."""

from segbench.measures.base import CountMeasure, Floats, Ints, iou


class MIoU(CountMeasure):
    """Counts are summed over all images before the division, as PASCAL VOC and Cityscapes define it."""

    short = "mIoU"
    long = "mIoU"
    help = "Mean intersection over union"
    standard = ({},)
    table_place = 0
    verdict_place = 1

    def score(self, counts: Ints) -> Floats:
        return 100 * iou(counts)
