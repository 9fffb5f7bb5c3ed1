"""One YAML file -> a validated `SweepConfig`. Light: imports neither torch nor any plug-in."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from segbench.errors import UserError, suggest
from segbench.registry import describe

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction01 = Annotated[float, Field(ge=0, le=1)]
# Without what ends a line, or moves or hides what a terminal shows.
PRINTABLE = r"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
Line = Annotated[str, Field(pattern=f"^{PRINTABLE}+$", description="text of one line")]
Size = Annotated[tuple[PositiveInt, PositiveInt], Field(description="(height, width) in pixels")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(BaseModel):
    """``name`` and the splits; every other key is a parameter of that data set's class."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: Line
    train_split: str = "train"
    val_split: str = "val"

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class EncoderConfig(Section):
    """A pyramid encoder of SMP or timm and where its weights come from."""

    name: str = "tf_efficientnet_lite0"
    weights: str = Field(
        "imagenet", description="imagenet, none (random, always the same), or a file: .safetensors, .pt, .pth"
    )
    trainable: bool = Field(False, description="fine-tune it: each run then has an encoder of its own")
    lr_factor: NonNegative = Field(0.1, description="learning rate of a trainable encoder, relative to recipe.lr")
    strides: list[PositiveInt] | None = Field(
        None, description="levels to use; default: every level of stride 4 and more"
    )


class DecoderConfig(Section):
    """An upsampler or decoder by name or ``path/to/file.py:Class``, with its parameters and its label in tables."""

    name: Line
    params: dict[str, Any] = {}
    label: Annotated[str, Field(pattern=f"^{PRINTABLE}*$", description="text of one line")] = ""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def title(self) -> str:
        return self.label or self.name.rpartition(":")[2]


class RecipeConfig(Section):
    """How every decoder of the sweep is trained."""

    steps: PositiveInt
    batch_size: PositiveInt = 8
    crop: Size = (256, 256)
    scale: tuple[Positive, Positive] = (0.5, 2.0)
    flip: Fraction01 = Field(0.5, description="probability of a horizontal flip")
    color_jitter: Fraction01 = Field(0.0, description="strength of brightness, contrast and saturation jitter")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = Field(2e-3, description="peak learning rate")
    weight_decay: NonNegative = Field(0.01, description="not of biases, normalisation and upsampler kernels")
    momentum: Fraction01 = Field(0.9, description="sgd only")
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    power: Positive = Field(0.9, description="poly only")
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip_norm: Positive | None = Field(None, description="largest gradient norm, for each decoder by itself")
    class_weights: list[NonNegative] | None = Field(None, description="one weight per class in the cross-entropy")

    @field_validator("crop", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _consistent(self) -> "RecipeConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale should be [smallest, largest], not {list(self.scale)}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) should be less than steps ({self.steps})")
        return self


class EvaluationConfig(Section):
    """How an image becomes a prediction, and what of it is counted; the same in training and for the final figures."""

    mode: Literal["whole", "slide"] = Field("whole", description="whole images, or windows with averaged logits")
    window: Size | None = Field(None, description="slide only")
    stride: Size | None = Field(None, description="slide only; default: two thirds of the window")
    flip: bool = Field(False, description="test-time augmentation: average with the mirror image")
    scales: list[Positive] = Field([1.0], min_length=1, description="test-time augmentation: average over these sizes")
    padding: Literal["mean", "replicate"] = Field(
        "mean",
        description="below and to the right, up to a multiple of the largest stride: the mean colour or the edge",
    )
    boundary_ratios: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.02], description="of Boundary IoU, of the diagonal"
    )
    tolerances_px: list[Annotated[float, Field(ge=1)]] = Field([3], description="of the boundary F1")
    trimap_widths_px: list[PositiveInt] = Field([1, 2, 4, 8, 16], description="of the trimap IoU")
    every: PositiveInt | None = Field(None, description="also evaluate every so many steps, for the history")

    @field_validator("window", "stride", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @field_validator("scales")
    @classmethod
    def _once(cls, value: list[float]) -> list[float]:
        if len(set(value)) < len(value):
            raise ValueError(f"{value} holds one twice")
        return value

    @model_validator(mode="after")
    def _windows(self) -> "EvaluationConfig":
        if self.mode == "whole" and (self.window or self.stride):
            raise ValueError("window and stride are for mode: slide")
        if self.mode == "slide" and self.window is None:
            raise ValueError("mode: slide needs a window, such as window: 512")
        if self.window and self.stride and any(s > w for s, w in zip(self.stride, self.window, strict=True)):
            raise ValueError(
                f"stride {list(self.stride)} is larger than window {list(self.window)}, which would leave gaps"
            )
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
        if self.window:
            said.append(f"slide {self.window[0]}x{self.window[1]} by {self.steps_px[0]}x{self.steps_px[1]}")
        said += ["flip"] if self.flip else []
        said += [f"scales {' '.join(f'{s:g}' for s in self.scales)}"] if self.scales != [1.0] else []
        said += [f"{self.padding} padding"] if self.padding != "mean" else []
        return ", ".join(said)


class TrainerConfig(Section):
    """Passed to Lightning's Trainer. A cohort has one device; of several GPUs each runs its own cohorts."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = Field(
        "cpu", description="auto: the best of this machine; a cluster's is not known here, and has to be named"
    )
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    deterministic: bool | Literal["warn"] = False
    benchmark: bool = Field(False, description="let cuDNN search for its fastest algorithms")


class SlurmConfig(Section):
    """What to ask Slurm for, for each cohort; its ``SBATCH_*`` environment variables say what is not here.

    There is no field for commands, and none takes more than a line: a config cannot make a job script run anything.
    """

    cluster: Literal["slurm", "local"] = Field("slurm", description="local: processes of this machine, to try it out")
    timeout_min: PositiveInt = Field(240, description="minutes, after which a job saves its state and queues again")
    signal_delay_s: PositiveInt = Field(90, description="seconds before that in which it can do so")
    cpus_per_task: PositiveInt | None = Field(None, description="default: launch.threads")
    gpus_per_node: PositiveInt | None = Field(None, description="default: 1 for a GPU cohort, else none")
    mem_gb: Positive | None = None
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    gres: Line | None = None
    nodelist: Line | None = None
    exclude: Line | None = None


class LaunchConfig(Section):
    """Where and how cohorts run; changes no number."""

    launcher: Literal["local", "ray", "slurm"] = Field(
        "local", description="processes of this machine, or tasks of a Ray or Slurm cluster (extras of the package)"
    )
    address: Line | None = Field(
        None, description="ray: auto (by RAY_ADDRESS), or host:port, on the command line only; default: started here"
    )
    slurm: SlurmConfig = SlurmConfig()
    on_oom: Literal["fail", "split"] = Field(
        "fail", description="when memory runs out: those runs fail, or they are tried again in halves of the cohort"
    )
    jobs: PositiveInt | None = Field(
        None, description="cohorts at a time; default: 2 on a CPU with 2 cores and more, 1 on a GPU"
    )
    threads: PositiveInt | None = Field(None, description="threads of each; default: the machine's cores over jobs")
    workers: Annotated[int, Field(ge=0)] = Field(
        0, description="data loader processes of each; 0 loads in the cohort's own"
    )
    trackers: list[Literal["csv", "tensorboard", "wandb", "mlflow"]] = Field(
        ["csv"], description="Lightning's loggers, for a live view; csv: RUN/live/metrics.csv; the others are extras"
    )
    checkpoint_minutes: Positive = Field(5.0, description="how often the state is saved, so that a stop loses no more")
    cache: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="folder for decoded images, read once and shared: /dev/shm (memory) or a fast disk"
    )


class SweepConfig(Section):
    """A sweep: its runs are the product of ``decoders``, ``seeds`` and every list in ``grid``."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    data: DataConfig
    encoder: EncoderConfig = EncoderConfig()
    decoders: list[DecoderConfig] = Field(
        min_length=1, description="upsamplers, each on the skeleton, and decoders of their own"
    )
    skeleton: Line = Field("pyramid", description="the decoder class that the upsamplers stand in, by name or file")
    decoder_defaults: dict[str, Any] = Field(
        {}, description="parameters for every decoder that takes them, such as width: 32"
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field([0], min_length=1)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="dotted key -> values, such as recipe.lr: [0.001, 0.002]"
    )
    recipe: RecipeConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    trainer: TrainerConfig = TrainerConfig()
    launch: LaunchConfig = LaunchConfig()
    baseline: Annotated[list[str], Field(min_length=1, max_length=2)] | None = Field(
        None,
        description="one or two names or labels, what differences are from; default: bilinear, bilinear_conv, if there",
    )
    runs_dir: Line = "runs"

    @field_validator("baseline", mode="before")
    @classmethod
    def _one_baseline(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _distinct(self) -> "SweepConfig":
        titles = [d.title for d in self.decoders]
        twice = sorted({t for t in titles if titles.count(t) > 1})
        if twice:
            raise ValueError(f"decoders: two are called '{twice[0]}'; give one of them a label")
        if len(set(self.baseline or ())) < len(self.baseline or ()):
            raise ValueError(f"baseline: {self.baseline} holds one twice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} holds one twice")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep file and apply ``key=value`` overrides (dotted keys, YAML values).

    Raises:
        UserError: no such file, broken YAML, an unknown key, a wrong type, an impossible value, or two overrides that
            contradict each other; the message names the place.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"config {path} is not UTF-8 text") from None
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        lines = {".".join(place): line for place, line in _lines(node, path)} if node else {}
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"config {path} should hold keys such as data: and decoders:, not {type(values).__name__}")
    values.setdefault("name", path.stem)
    launch = values.get("launch")
    if isinstance(launch, dict) and launch.get("address") not in (None, "auto"):
        where = f", line {lines['launch.address']}" if "launch.address" in lines else ""  # else by a YAML merge
        raise UserError(
            f"{path}{where}: launch.address should be auto here; a cluster can run code on "
            "this machine, so name it yourself: launch.address=HOST:PORT on the command line, or in RAY_ADDRESS"
        )
    given = parse_overrides(overrides)
    for key, value in given.items():
        _assign(values, key, value)
        lines = {place: line for place, line in lines.items() if place != key and not place.startswith(f"{key}.")}
    config = build_config(values, str(path), lines)
    titles = [d.title for d in config.decoders]
    if "baseline" in given or "decoders" not in given:  # else a narrower call, which adds to what the file names
        for baseline in config.baseline or ():
            if baseline not in titles:
                raise UserError(
                    f"{path}: baseline: there is no '{baseline}'{suggest(baseline, titles)} among the decoders"
                )
    return config


def build_config(values: dict[str, Any], source: str = "config", lines: dict[str, int] | None = None) -> SweepConfig:
    """Validate plain values; ``source`` and ``lines`` (dotted key -> line number) say where they came from."""
    try:
        config = SweepConfig.model_validate(values)
    except ValidationError as error:
        messages = [_explain(e, source, lines or {}) for e in error.errors()]
        raise UserError("; ".join(dict.fromkeys(messages))) from None
    return config


def expand_grid(config: SweepConfig) -> Iterator[tuple[dict[str, Any], SweepConfig]]:
    """Each combination of the ``grid`` lists, with the config that it makes (its own grid empty)."""
    combinations: list[dict[str, Any]] = [{}]
    for key, options in config.grid.items():
        combinations = [{**c, key: option} for c in combinations for option in options]
    for combination in combinations:
        values = config.model_dump() | {"grid": {}}
        for key, value in combination.items():
            if key.split(".")[0] not in ("data", "encoder", "recipe", "evaluation", "trainer"):
                raise UserError(
                    f"grid: '{key}' cannot vary; keys under data, encoder, recipe, evaluation and trainer can"
                )
            _assign(values, key, value)
        yield combination, build_config(values, "grid")


def _lines(node: yaml.Node, path: Path, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Dotted place -> line, of every node; a key that stands twice in one mapping is an error."""
    yield place, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue  # loading it says what is wrong
            if key.value in seen:
                raise UserError(f"{path}, line {line}: '{key.value}' stands twice")
            seen.add(key.value)
            for inner, inner_line in _lines(value, path, (*place, str(key.value))):
                yield inner, line if len(inner) == len(place) + 1 else inner_line
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _lines(value, path, (*place, str(i)))


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override '{item}' should look like key=value, for example recipe.steps=500")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"override '{item}': '{text}' is not a YAML value") from None
        for other, old in given.items():
            same = other == key and old != value
            if same or other.startswith(f"{key}.") or key.startswith(f"{other}."):
                raise UserError(f"overrides contradict each other: {other}={old} and {key}={value}")
        given[key] = value
    return given


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    here: Any = values
    for i, part in enumerate(parents):
        here = here[int(part)] if isinstance(here, list) and part.isdigit() and int(part) < len(here) else here
        if isinstance(here, dict):
            here = here.setdefault(part, {})
        if not isinstance(here, dict | list):
            raise UserError(f"override '{dotted}': {'.'.join(parents[: i + 1])} is a value, not a section")
    if isinstance(here, list):
        raise UserError(f"override '{dotted}': give the whole list, {'.'.join(parents)}=[...]")
    here[last] = value


def _explain(error: Any, source: str, lines: dict[str, int]) -> str:
    loc = [part for part in error["loc"] if not str(part).startswith("function-")]
    place = ".".join(str(part) for part in loc)
    where = f"{source}, line {lines[place]}" if place in lines else source
    if error["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        section = ".".join(str(part) for part in loc[:-1])
        there = f"; {section or 'the top level'} has: {', '.join(known)}"
        return f"{where}: unknown key '{place}'{suggest(str(loc[-1]), known)}{there}"
    return f"{where}: {describe({**error, 'loc': loc})}"


def _known_keys(loc: Sequence[Any]) -> list[str]:
    model: type[BaseModel] = SweepConfig
    for part in loc:
        if isinstance(part, int):
            continue
        if part == "decoders":
            model = DecoderConfig
        else:
            annotation = model.model_fields[str(part)].annotation
            assert isinstance(annotation, type)
            model = annotation
    return list(model.model_fields)
