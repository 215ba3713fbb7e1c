"""What a comparison may be told from a file or the command line, checked strictly."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    model_validator,
)

from optscope.engine.average import EMA, SWA
from optscope.engine.place import Place, devices_of
from optscope.engine.plan import MOST_STEPS, Plan
from optscope.errors import UserError, nearest
from optscope.evidence.records import Metric
from optscope.optim.schedules import StepDecay
from optscope.optim.sign import Per
from optscope.probes.probe import Probe
from optscope.protocol.arms import DEFAULT
from optscope.protocol.comparison import MOST_ROUNDS
from optscope.protocol.margin import margin_said

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
QUICK = {"seeds": 2, "widen": 0, "twin_seeds": 0}
"""What a quick look takes, where nothing else is said."""


def _margin(said: float | str | None) -> float | str | None:
    """Return what was said, if it says a margin."""
    margin_said(said, Metric("accuracy", "%"))
    return said


def _graft(said: object) -> object:
    """Return over what lengths are taken: over layers, where it is only said that there are grafts."""
    if said is True:
        return "layer"
    if said is False or said in get_args(Per):
        return said
    raise ValueError(f'graft must be true, "layer", "module" or "model"; got {said!r}')


class OptimiserSettings(BaseModel):
    """What may be said of one optimiser: the learning rates `lr` to try, and what else is searched (`space`)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    lr: Annotated[list[Rate], Field(min_length=1, max_length=100)] | None = None
    space: Annotated[dict[str, Any], Field(min_length=1, max_length=20)] | None = None


class Settings(BaseModel):
    """A comparison's settings; the first optimiser is the one that others are compared with.

    What each means, and is where nothing is said, stands in a table of the page "Your model", under Settings. A
    wrong name, type or range is refused: here with pydantic's `ValidationError`, by the doors and `read_settings`,
    which read a file, with a `UserError`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    optimisers: dict[str, OptimiserSettings] = Field(
        default_factory=lambda: {name: OptimiserSettings() for name in DEFAULT}, min_length=1)
    seeds: int = Field(default=8, ge=1, le=10_000)
    tuning_seeds: int = Field(default=1, ge=1, le=1000)
    trials: int | None = Field(default=None, ge=1, le=10_000, description="drawn points; else every combination")
    widen: int = Field(default=2, ge=0, le=MOST_ROUNDS, description="how often a search goes on beyond its ends")
    twin_seeds: int = Field(default=2, ge=0, le=1000, description="seeds that also train rounding twins")
    epochs: int | None = Field(default=None, ge=1, le=MOST_STEPS, description="30, if there are no steps either")
    steps: int | None = Field(default=None, ge=1, le=MOST_STEPS, description="instead of epochs, as for streams")
    batch: int = Field(default=128, ge=1)
    quick: bool = Field(default=False, description="a first look: two seeds, half of the search, no twins")
    baseline: str | None = Field(default=None, description="which optimiser others are compared with; the first")
    probes: Annotated[list[str | InstanceOf[Probe]], Field(min_length=1)] | None = Field(
        default=None, description="what is measured, by name or (from Python) by value; the usual probes that fit")
    metrics: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="of what is measured, in what differences are tested")
    margin: Annotated[float | str | None, AfterValidator(_margin)] = Field(
        default=None, description="within what accuracies count as equal: points, or a share of the error (20%)")
    graft: Annotated[bool | Per, BeforeValidator(_graft)] = Field(
        default=False, description="cross every optimiser's step length, per layer, with every direction")
    examples: int = Field(default=1000, ge=1, description="test examples that attacks look at")
    device: str = Field(default="cpu", description="auto, cpu, cuda, mps, ..., or several: cuda:0,cuda:1")
    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    threads: int = Field(default=1, ge=1, le=1024, description="of a CPU, for each run")
    deterministic: bool = True
    compile: bool | Literal["try"] = False
    autocast: Literal["bfloat16", "float16"] | None = None
    ranks: int = Field(default=1, ge=1, le=1024, description="processes that train one model together")
    micro_batch: int | None = Field(default=None, ge=1, description="examples whose gradient is taken at once")
    clip: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="the longest gradient")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of the averaged weights")
    swa: float | None = Field(default=None, ge=0, lt=1, description="share of the steps before averaging")

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices over which runs are spread.

        Raises:
            UserError: when one is not there, or they are of several kinds.
        """
        return devices_of(self.device)

    @property
    def place(self) -> Place:
        """Where every run is done, whichever of several devices of one kind it gets.

        Raises:
            UserError: when a device is not there, or what is asked for cannot be together.
        """
        kind = self.devices[0].partition(":")[0]
        return Place(kind, self.dtype, self.threads, self.deterministic, self.compile, self.autocast,
                     self.ranks)

    @property
    def extent(self) -> Settings:
        """These settings, of a quick look with its few seeds and short search where nothing else is said."""
        if not self.quick:
            return self
        return self.model_copy(update={name: value for name, value in QUICK.items()
                                       if name not in self.model_fields_set})

    @model_validator(mode="after")
    def _one_of_each(self) -> Settings:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"give epochs or steps, not both; got {self.epochs} epochs and {self.steps} steps")
        if self.ema is not None and self.swa is not None:
            raise ValueError(f"ema and swa are two averages of the weights; got {self.ema} and {self.swa}: "
                             "give one")
        return self

    @property
    def plan(self) -> Plan:
        """How long and how every arm is trained."""
        average = None if self.ema is None else EMA(self.ema)
        return Plan(self.epochs, self.batch, StepDecay(), steps=self.steps, micro_batch=self.micro_batch,
                    clip=self.clip, average=average if self.swa is None else SWA(self.swa))


def read_settings(path: Path | None, **overrides: Any) -> Settings:
    """Return the settings in a TOML file, with those of `overrides` that are not None.

    Raises:
        UserError: when the file is missing, no TOML, or says something unknown.
    """
    found = _read_toml(path) if path else {}
    return _valid(found | {name: value for name, value in overrides.items() if value is not None}, path)


def settings_with(settings: Settings | None, said: Mapping[str, Any]) -> Settings:
    """Return settings (None: the usual ones) with what is said beside them.

    >>> settings_with(None, {"seeds": 3}).seeds
    3

    Raises:
        UserError: when something unknown is said.
    """
    if not said:
        return settings or Settings()
    known = {name: getattr(settings, name) for name in settings.model_fields_set} if settings else {}
    return _valid(known | dict(said), None)


def _valid(said: Mapping[str, Any], path: Path | None) -> Settings:
    try:
        return Settings.model_validate(said)
    except ValidationError as error:
        raise UserError(_sentence(error, path)) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.loads(file.read(1_000_000).decode("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no settings file {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a TOML file: {str(error) or type(error).__name__}") from error


def _sentence(error: ValidationError, path: Path | None) -> str:
    """Return the first complaint as one sentence with the key's path."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    source = f"{path}: " if path else ""
    if first["type"] == "extra_forbidden":
        known = OptimiserSettings if len(first["loc"]) > 1 else Settings
        return f"{source}{where} is not a setting; {nearest(str(first['loc'][-1]), known.model_fields)}"
    if first["type"] == "value_error":
        return f"{source}{first['ctx']['error']}"
    return f"{source}{where}: {first['msg'].lower()}; got {first['input']!r}"
