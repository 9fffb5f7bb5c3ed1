"""The sections and keys of a sweep file, each with its type, default and range. Imports no torch."""

import itertools
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from segbench.config_effort import BudgetConfig, HoldoutConfig, TuneConfig
from segbench.config_values import (
    AtLeast1,
    Count,
    Distinct,
    Folder,
    Fraction01,
    Int,
    NonNegative,
    OneLine,
    OneOrTwo,
    Positive,
    Section,
    Side,
    Size,
    name_of_folder,
    short,
)
from segbench.spelling import look

MOST_RUNS = 10_000  # of a sweep; each is a folder, and planning and the table look at all of them


class DataConfig(BaseModel):
    """``name`` and the splits; every other key is a parameter of that data set's class."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: OneLine = Field(description="a data set by name, or path/to/file.py:Class")
    train_split: str = Field("train", description="its split to train on")
    val_split: str = Field("val", description="and to evaluate on")
    holdout: HoldoutConfig | None = Field(
        None, description="evaluate on that part of train_split, which then trains nothing, in place of val_split"
    )

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def split(self, which: str) -> str:
        """What the split that is called ``train`` or ``val`` here is called to a reader."""
        if self.holdout is None:
            return self.train_split if which == "train" else self.val_split
        return f"{self.train_split}-{'rest' if which == 'train' else 'held-out'}"


class PluginConfig(Section):
    """A plug-in by name or ``path/to/file.py:Class``, with its parameters; or the name alone."""

    name: OneLine = Field(description="by name, or path/to/file.py:Class")
    params: dict[str, Any] = Field({}, description="parameters of its constructor")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def title(self) -> str:
        return self.name.rpartition(":")[2]


WEIGHTS_BY_NAME = ("default", "imagenet", "none")  # all else names a file


class EncoderConfig(PluginConfig):
    """A pyramid encoder and where its weights come from: SMP's or timm's by name, or a plug-in."""

    name: OneLine = Field("tf_efficientnet_lite0", description="SMP's, timm's or a plug-in's, or path/to/file.py:Class")
    params: dict[str, Any] = Field(
        {}, description="parameters of a plug-in's constructor; of timm's plain ViTs blocks, norm and positions"
    )
    weights: OneLine = Field(
        "default",
        description="default (imagenet; of a plug-in, what its class loads), imagenet, none (nothing is loaded: "
        "random, always the same, but for what a plug-in's class loads), or a file: .safetensors, .pt, .pth",
    )
    trainable: bool = Field(False, description="fine-tune it: each run then has an encoder of its own")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32",
        description="that features are rounded to, kept (launch.features) or not; decoders get them as before",
    )
    lr_factor: NonNegative = Field(0.1, description="learning rate of a trainable encoder, relative to recipe.lr")
    strides: list[AtLeast1] | None = Field(None, description="levels to use; default: every level of stride 4 and more")

    @model_validator(mode="after")
    def _rounded(self) -> "EncoderConfig":
        if self.trainable and self.dtype != "float32":
            raise ValueError(f"dtype {self.dtype} is for a frozen encoder; leave it out with trainable: true")
        return self


class DecoderConfig(PluginConfig):
    """An upsampler or decoder, and its label in tables."""

    label: Annotated[str, short] = Field("", description="what it is called in tables; default: its name")

    @property
    def title(self) -> str:
        return self.label or super().title


@AfterValidator
def distinct_titles(decoders: list[DecoderConfig]) -> list[DecoderConfig]:
    titles = [d.title for d in decoders]
    looks = [look(title) for title in titles]
    if twice := [t for t in titles if titles.count(t) > 1]:
        raise ValueError(f"two are called '{min(twice)}'; give one of them a label")
    if alike := [title for title in titles if looks.count(look(title)) > 1]:
        spelled = " and ".join(map(ascii, alike[:2]))
        raise ValueError(f"two look the same, {spelled}; give one of them another label")
    return decoders


# Keys of a recipe that concern a run's own optimizer alone: runs that differ in nothing else train on the same batches.
OF_OPTIMIZER = frozenset(
    {
        "optimizer",
        "lr",
        "weight_decay",
        "momentum",
        "schedule",
        "power",
        "min_lr",
        "cosine_steps",
        "warmup_steps",
        "clip_norm",
    }
)


class RecipeConfig(Section):
    """How every decoder of the sweep is trained."""

    steps: Annotated[Int, Field(gt=0, le=100_000_000)] = Field(description="of the optimizer")
    batch_size: Annotated[Int, Field(gt=0, le=65_536)] = Field(8, description="images in a step")
    crop: Size = Field((256, 256), description="(height, width) in pixels cut from an image, or one for both")
    scale: tuple[Positive, Positive] = Field((0.5, 2.0), description="smallest and largest resizing before that")
    resize: Side | None = Field(
        None,
        description="pixels of its shorter side, or [height, width], to which an image is brought before all else",
    )
    flip: Fraction01 = Field(0.5, description="probability of a horizontal flip")
    color_jitter: Fraction01 = Field(0.0, description="strength of brightness, contrast and saturation jitter")
    views: AtLeast1 | None = Field(
        None,
        description="augmented views of each image, the same for all seeds, that epochs take in turn, so that their "
        "features can be kept (launch.features); default: a new one each time",
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="torch's")
    lr: Positive = Field(2e-3, description="peak learning rate")
    weight_decay: NonNegative = Field(0.01, description="not of biases, normalisation and upsampler kernels")
    momentum: Fraction01 = Field(0.9, description="sgd only")
    schedule: Literal["cosine", "poly", "constant"] = Field("cosine", description="how the learning rate falls")
    power: Positive = Field(0.9, description="poly only")
    min_lr: NonNegative = Field(0.0, description="learning rate at the schedule's end")
    cosine_steps: AtLeast1 | None = Field(
        None, description="cosine only: steps from its peak to its end, after which it rises again; default: all"
    )
    warmup_steps: Annotated[Int, Field(ge=0)] = Field(0, description="in which the learning rate rises to its peak")
    clip_norm: Positive | None = Field(None, description="largest gradient norm, for each decoder by itself")
    class_weights: list[NonNegative] | None = Field(None, description="one weight per class in the cross-entropy")

    @model_validator(mode="after")
    def _consistent(self) -> "RecipeConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale should be [smallest, largest], not {list(self.scale)}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr}) should be at most lr ({self.lr})")
        if self.cosine_steps and self.schedule != "cosine":
            raise ValueError(f"cosine_steps is for schedule: cosine, not {self.schedule}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) should be less than steps ({self.steps})")
        return self


class EvaluationConfig(Section):
    """How an image becomes a prediction; the same in training and for the final figures."""

    mode: Literal["whole", "slide", "crop"] = Field(
        "whole", description="whole images, windows with averaged logits, or the centre of images and labels alone"
    )
    window: Size | None = Field(None, description="slide and crop only; of a crop no larger than any image")
    resize: Side | None = Field(
        None,
        description="pixels of its shorter side, or [height, width], to which an image (or crop) is brought before the "
        "model",
    )
    label_size: Side | None = Field(
        None,
        description="at which pixels are counted: most pixels of the labels' longer side, to which larger ones shrink, "
        "or [height, width] of all",
    )
    stride: Size | None = Field(None, description="slide only; default: two thirds of the window")
    flip: bool = Field(False, description="test-time augmentation: average with the mirror image")
    scales: Distinct[Positive] = Field([1.0], description="test-time augmentation: average over these sizes")
    fit: Literal["pad", "resize"] = Field(
        "pad",
        description="how an image or window comes to a multiple of the largest stride: padded below and to the right, "
        "or resized to the nearest one and the logits back",
    )
    padding: Literal["mean", "replicate"] = Field("mean", description="fit: pad only: with the mean colour or the edge")
    every: AtLeast1 | None = Field(None, description="also evaluate every so many steps, for the history")

    @model_validator(mode="after")
    def _windows(self) -> "EvaluationConfig":
        if self.mode == "whole" and (self.window or self.stride):
            raise ValueError("window and stride are for mode: slide, and window for mode: crop")
        if self.mode == "crop" and self.stride:
            raise ValueError("stride is for mode: slide; mode: crop has one window, in the centre")
        if self.mode != "whole" and self.window is None:
            raise ValueError(f"mode: {self.mode} needs a window, such as window: 512")
        if self.window and self.stride and any(s > w for s, w in zip(self.stride, self.window, strict=True)):
            raise ValueError(
                f"stride {list(self.stride)} is larger than window {list(self.window)}, which would leave gaps"
            )
        return self

    @model_validator(mode="after")
    def _one_fit(self) -> "EvaluationConfig":
        if self.fit == "resize" and self.padding != "mean":
            raise ValueError(f"padding: {self.padding} is for fit: pad; fit: resize pads nothing")
        return self

    @property
    def steps_px(self) -> tuple[int, int]:
        """(rows, columns) from one window to the next."""
        assert self.window is not None
        return self.stride or (-(-2 * self.window[0] // 3), -(-2 * self.window[1] // 3))

    @property
    def title(self) -> str:
        """What sets it apart from one pass over whole images, such as ``flip``; empty where nothing does."""
        said = []
        if self.window and self.mode == "crop":
            said.append(f"centre crop {self.window[0]}x{self.window[1]}")
        elif self.window:
            said.append(f"slide {self.window[0]}x{self.window[1]} by {self.steps_px[0]}x{self.steps_px[1]}")
        said += ["flip"] if self.flip else []
        said += [f"scales {' '.join(f'{s:g}' for s in self.scales)}"] if self.scales != [1.0] else []
        said += ["resized to fit"] if self.fit == "resize" else []
        said += [f"{self.padding} padding"] if self.padding != "mean" else []
        said += [_sized("shorter side to", "resized to", self.resize)] if self.resize else []
        said += [_sized("labels at", "labels at", self.label_size)] if self.label_size else []
        return ", ".join(said)


def _sized(one: str, both: str, side: int | list[int]) -> str:
    return f"{one} {side} px" if isinstance(side, int) else f"{both} {side[0]}x{side[1]}"


class TrainerConfig(Section):
    """Passed to Lightning's Trainer. A cohort has one device; of several GPUs each runs its own cohorts."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = Field(
        "cpu", description="auto: the best of this machine; a cluster's is not known here, and has to be named"
    )
    precision: Literal["32-true", "bf16-mixed"] = Field("32-true", description="Lightning's")
    deterministic: Literal[True, False, "warn"] = Field(
        False, description="refuse what is not deterministic, or warn; on a CPU nothing here needs it"
    )
    benchmark: bool = Field(False, description="let cuDNN search for its fastest algorithms")
    compile: bool = Field(False, description="torch.compile each decoder: pays in long runs; needs a C++ compiler")


class SlurmConfig(Section):
    """What to ask Slurm for, for each cohort; its ``SBATCH_*`` environment variables say what is not here.

    There is no field for commands, and none takes more than a line: a config cannot make a job script run anything.
    """

    cluster: Literal["slurm", "local"] = Field("slurm", description="local: processes of this machine, to try it out")
    timeout_min: AtLeast1 = Field(240, description="minutes, after which a job saves its state and queues again")
    signal_delay_s: AtLeast1 = Field(90, description="seconds before that in which it can do so")
    cpus_per_task: AtLeast1 | None = Field(None, description="default: launch.threads")
    gpus_per_node: AtLeast1 | None = Field(None, description="default: 1 for a GPU cohort, else none")
    mem_gb: Positive | None = Field(None, description="memory of a job")
    partition: OneLine | None = Field(None, description="sbatch's --partition")
    account: OneLine | None = Field(None, description="sbatch's --account")
    qos: OneLine | None = Field(None, description="sbatch's --qos")
    constraint: OneLine | None = Field(None, description="sbatch's --constraint")
    gres: OneLine | None = Field(None, description="sbatch's --gres")
    nodelist: OneLine | None = Field(None, description="sbatch's --nodelist")
    exclude: OneLine | None = Field(None, description="sbatch's --exclude")


class LaunchConfig(Section):
    """Where and how cohorts run; changes no number."""

    launcher: OneLine = Field(
        "local",
        description="local: processes of this machine; ray, slurm: a cluster's (extras); or path/to/file.py:Class",
    )
    params: dict[str, Any] = Field({}, description="arguments of a launcher of your own")
    address: OneLine | None = Field(
        None, description="ray: auto (by RAY_ADDRESS), or host:port, on the command line only; default: started here"
    )
    slurm: SlurmConfig = SlurmConfig()
    on_oom: Literal["fail", "split"] = Field(
        "fail", description="when memory runs out: those runs fail, or they are tried again in halves of the cohort"
    )
    jobs: Count | None = Field(
        None, description="cohorts at a time; default: 2 on a CPU with 2 cores and more, 1 on a GPU"
    )
    threads: Count | None = Field(None, description="threads of each; default: the machine's cores over jobs")
    timeout_min: Positive | None = Field(
        60.0, description="minutes without a step or image, after which a cohort is ended; null: it is waited for"
    )
    workers: Annotated[Int, Field(ge=0, le=1024)] | None = Field(
        None, description="data loader processes of each; default: what keeps up, on cores that threads leave free"
    )
    trackers: list[Literal["csv", "tensorboard", "wandb", "mlflow"]] = Field(
        ["csv"], description="Lightning's loggers, for a live view; csv: RUN/live/metrics.csv; the others are extras"
    )
    checkpoint_minutes: Positive = Field(5.0, description="how often the state is saved, so that a stop loses no more")
    cache: Folder | None = Field(
        None, description="folder for decoded images, read once and shared: /dev/shm (memory) or a fast disk"
    )
    features: Folder | None = Field(
        None,
        description="folder for a frozen encoder's features, computed once and shared by decoders, seeds and sweeps: "
        "of recipe.views in training, and of the evaluation's images",
    )


class SweepConfig(Section):
    """A sweep: its runs are the product of ``decoders``, ``seeds`` and every list in ``grid``, twice with ``tune``."""

    name: Annotated[str, name_of_folder] = Field(description="of the sweep's folder in runs_dir; default: the file's")
    data: DataConfig
    encoder: EncoderConfig = EncoderConfig()
    decoders: Annotated[list[DecoderConfig], Field(min_length=1), distinct_titles] = Field(
        description="upsamplers, each on the skeleton, and decoders of their own"
    )
    skeleton: OneLine = Field("pyramid", description="the decoder class that the upsamplers stand in, by name or file")
    decoder_defaults: dict[str, Any] = Field(
        {}, description="parameters for every decoder that takes them, such as width: 32"
    )
    seeds: Distinct[Annotated[Int, Field(ge=0, lt=2**31)]] = Field(
        [0], description="one training of each decoder for each"
    )
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] | list[dict[str, Any]] = Field(
        {}, description="dotted key -> values, such as recipe.lr: [0.001, 0.002]; or a list of settings, {key: value}"
    )
    tune: TuneConfig | None = Field(None, description="search settings for each decoder; default: none")
    budget: BudgetConfig | None = Field(None, description="what every decoder is to cost; default: as it is")
    task: PluginConfig = Field(
        PluginConfig(name="segmentation"),
        description="what decoders are trained for: segmentation, or reconstruction of the image",
    )
    recipe: RecipeConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    measures: list[PluginConfig] = Field(
        [], description="beside the standard ones, such as {name: biou, params: {ratio: 0.005}} or my.py:Class"
    )
    trainer: TrainerConfig = TrainerConfig()
    launch: LaunchConfig = LaunchConfig()
    baseline: OneOrTwo | None = Field(
        None,
        description="one or two names or labels, what differences are from; default: bilinear, bilinear_conv, if there",
    )
    runs_dir: Folder = Field("runs", description="the folder of all sweeps' folders")

    @model_validator(mode="after")
    def _few_enough(self) -> "SweepConfig":
        made = [len(self.grid)] if isinstance(self.grid, list) else [len(values) for values in self.grid.values()]
        runs = len(self.decoders) * len(self.seeds) * math.prod(made)
        if runs > MOST_RUNS:
            raise ValueError(f"decoders, seeds and grid make {runs:,} runs; a sweep has at most {MOST_RUNS:,}")
        return self

    @model_validator(mode="after")
    def _searchable(self) -> "SweepConfig":
        settings = [self.grid] if isinstance(self.grid, dict) else self.grid
        grid = list({key: None for each in settings for key in each})
        searched = list(self.tune.search if self.tune else ())
        for key, other in itertools.product(searched, grid):
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                raise ValueError(f"tune.search and grid both have {other}; what the grid sets cannot be searched")
        if self.tune and (self.data.holdout or any(key.startswith("data.holdout") for key in grid)):
            raise ValueError("tune holds out a part of the training images itself; leave data.holdout out")
        if self.tune and (both := sorted({*self.tune.seeds} & {*self.seeds})):
            raise ValueError(f"tune.seeds and seeds both hold {both[0]}; what is chosen is trained from fresh seeds")
        if self.budget or any(key.partition(".")[0] == "budget" for key in grid):
            for key in (key for key in (*grid, *searched) if key.startswith("decoder.")):
                raise ValueError(f"{key} may change what a decoder costs, by which budget chooses its width; drop one")
        return self
