"""How a gradient becomes a step: rules, and combinators of rules."""

from optscope.optim.adaptive import Adam, AdamW, RMSProp
from optscope.optim.by_kind import ByKind, Where
from optscope.optim.foreign import Foreign
from optscope.optim.graft import Graft
from optscope.optim.momentum import Momentum, matched
from optscope.optim.muon import Muon
from optscope.optim.players import Players
from optscope.optim.polar import PolarSGD
from optscope.optim.rounding import Rounded
from optscope.optim.rule import Rule
from optscope.optim.sam import SAM
from optscope.optim.schedule_free import ScheduleFree
from optscope.optim.schedules import Constant, Cosine, Decayed, Linear, Schedule, Scheduled, StepDecay
from optscope.optim.sgd import SGD
from optscope.optim.sign import NormalizedSGD, SignSGD
from optscope.optim.svag import SVAG

__all__ = ["SAM", "SGD", "SVAG", "Adam", "AdamW", "ByKind", "Constant", "Cosine", "Decayed", "Foreign", "Graft",
           "Linear", "Momentum", "Muon", "NormalizedSGD", "Players", "PolarSGD", "RMSProp", "Rounded", "Rule",
           "Schedule", "ScheduleFree", "Scheduled", "SignSGD", "StepDecay", "Where", "matched"]
